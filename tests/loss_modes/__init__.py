"""Each loss mode of Celery on RabbitMQ, on plain Celery and on unlost."""

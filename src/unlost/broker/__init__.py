"""I/O with RabbitMQ: connections, the confirming publisher, the management API, applying a topology."""

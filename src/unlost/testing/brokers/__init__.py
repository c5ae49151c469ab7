"""Where brokers for tests come from.

::

    with start_broker(environ=os.environ) as broker, broker.fresh_vhost() as vhost:
        app.conf.broker_url = vhost.amqp_url

In this order: the broker that ``UNLOST_BROKER_URL`` names (``UNLOST_MANAGEMENT_URL`` if its
management API is elsewhere), a container of a local Docker engine (``UNLOST_RABBITMQ_IMAGE``), a
private node from an installed ``rabbitmq-server``. ``UNLOST_BROKER=external|docker|local`` forces one.
"""

from unlost.testing.brokers.base import Broker, NoBroker, NodeGone, Vhost
from unlost.testing.brokers.cluster import DockerCluster, docker_cluster
from unlost.testing.brokers.resolve import available, candidates, start_broker

__all__ = [
    "Broker",
    "DockerCluster",
    "NoBroker",
    "NodeGone",
    "Vhost",
    "available",
    "candidates",
    "docker_cluster",
    "start_broker",
]

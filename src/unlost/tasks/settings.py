"""The Celery settings that ``install`` makes, and those that would break the promise."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from celery import Celery
from kombu import Exchange, Queue

from unlost.config import Settings
from unlost.errors import ConfigurationError
from unlost.topology.model import Topology

#: A worker's exit status when its configuration is wrong.
EXIT_CONFIGURATION = 2

POOL_PATIENCE = timedelta(seconds=10)
#: A worker whose connection is dead, but was never closed, notices within 20 to 30 s; Celery's default takes
#: minutes.
HEARTBEAT = timedelta(seconds=10)

#: Settings whose other values contradict a guarantee: name → (the value we need, why).
REQUIRED: dict[str, tuple[Any, str]] = {
    "task_acks_late": (True, "an early ack loses the task when its process dies"),
    "task_reject_on_worker_lost": (True, "Celery acks a task whose process was killed"),
    "task_acks_on_failure": (False, "Celery acks a failure away instead of dead-lettering it"),
    "task_create_missing_queues": (False, "a mistyped queue name would become a queue nobody consumes"),
    "task_protocol": (2, "protocol 1 keeps headers in the body"),
    "task_serializer": ("json", "only JSON is accepted"),
    "result_serializer": ("json", "only JSON is accepted"),
    "accept_content": (["json"], "pickle runs what it unpacks"),
    "worker_consumer": ("unlost.tasks.consumer:ReliableConsumer", "it settles what Celery drops"),
    "worker_disable_rate_limits": (
        True,
        "Celery's rate limits hold messages in a worker's memory; give the task limit=unlost.Limit(...)",
    ),
    "task_default_rate_limit": (
        None,
        "Celery's rate limits hold messages in a worker's memory; give the task limit=unlost.Limit(...)",
    ),
    "worker_cancel_long_running_tasks_on_connection_loss": (
        False,
        "the lease already keeps a second copy from running",
    ),
}


def celery_settings(topology: Topology, settings: Settings) -> dict[str, Any]:
    """Return everything ``install`` sets."""
    late = "late_ack" not in settings.dangerously_without
    exchange = Exchange(topology.exchange, "topic", no_declare=True)
    names = list(topology.queues)
    return {
        **{name: value for name, (value, _) in REQUIRED.items()},
        "task_acks_late": late,
        "task_reject_on_worker_lost": late,
        # No x-queue-type here: Celery's quorum detection and its own delay branch stay off.
        "task_queues": [Queue(name, exchange, routing_key=name, no_declare=True) for name in names],
        "task_default_queue": names[0],
        "task_default_exchange": topology.exchange,
        "task_default_exchange_type": "topic",
        "task_default_routing_key": names[0],
        "task_ignore_result": True,
        "task_publish_retry": False,
        "event_serializer": "json",
        "worker_prefetch_multiplier": 1,
        "worker_detect_quorum_queues": False,
        "broker_heartbeat": HEARTBEAT.total_seconds(),
        "worker_soft_shutdown_timeout": settings.shutdown_grace.total_seconds(),
        "broker_connection_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_channel_error_retry": True,
        "broker_pool_acquire_timeout": POOL_PATIENCE.total_seconds(),
    }


def refuse_contradictions(app: Celery, allowed: dict[str, Any] | None = None) -> None:
    """Refuse what the application has set against a guarantee.

    Args:
        app: Whose settings to look at.
        allowed: What ``install`` is about to set; without it, it has been, and all values are looked at.

    Raises:
        ConfigurationError: Names the setting, its value, the value unlost needs, and why.
    """
    conf = app.conf
    installed = allowed or getattr(app, "unlost_settings", {})
    for name, (usual, why) in REQUIRED.items():
        needed = installed.get(name, usual)
        # Before install a default is no choice; value_set_for also sees a config object's values.
        if (allowed is None or conf.value_set_for(name)) and conf[name] != needed:
            raise ConfigurationError(
                f"{name}={conf[name]!r} contradicts unlost.install, which needs {name}={needed!r}: "
                f"{why}. Remove the setting."
            )
    if (conf.get("broker_transport_options") or {}).get("confirm_publish"):
        raise ConfigurationError(
            "broker_transport_options['confirm_publish']=True contradicts unlost.install, which confirms "
            "on connections of its own: Celery's would block the worker's control traffic. Remove it."
        )

"""Opening connections to RabbitMQ, and saying clearly why one cannot be opened."""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import timedelta

import amqp
from kombu import Connection
from kombu.utils.url import maybe_sanitize_url

from unlost.broker.errors import AccessRefused, BrokerUnavailable

#: py-amqp's default of one second kills the socket 1.5 s into a memory alarm, while the broker is only
#: not reading. It must lie above the time for which a publisher waits for a confirm.
USER_TIMEOUT_MARGIN = timedelta(seconds=20)


def open_connection(
    source: Connection,
    *,
    connect_timeout: timedelta,
    patience: timedelta,
    on_blocked: Callable[[str], None] | None = None,
    on_unblocked: Callable[[], None] | None = None,
) -> amqp.Connection:
    """Open a connection of our own; kombu's pooled ones are closed under their users' feet.

    Args:
        source: Where to; only its parameters are used.
        connect_timeout: How long to wait for TCP, TLS and login.
        patience: How long sent bytes may stay unacknowledged before the kernel gives up.
        on_blocked: Called with the broker's reason when it stops reading.
        on_unblocked: Called when it reads again.

    Raises:
        AccessRefused: Wrong user, password or vhost.
        BrokerUnavailable: Nobody answered in time, or the broker has too many connections.
    """
    user_timeout = int((patience + USER_TIMEOUT_MARGIN).total_seconds() * 1000)
    link = source.clone(connect_timeout=connect_timeout.total_seconds(), heartbeat=0)
    link.transport_options = {
        **(source.transport_options or {}),
        "socket_settings": {socket.TCP_USER_TIMEOUT: user_timeout},
        "on_blocked": on_blocked,
        "on_unblocked": on_unblocked,
        "read_timeout": patience.total_seconds(),
        "write_timeout": patience.total_seconds(),
        "confirm_publish": False,
    }
    try:
        return link.transport.establish_connection()
    except (amqp.exceptions.AccessRefused, amqp.exceptions.NotAllowed) as exc:
        if _is_limit(exc):
            raise BrokerUnavailable(
                f"the broker at {where(source)} takes no more connections: {exc}. Close some, or raise the "
                "limit (rabbitmqctl set_vhost_limits, set_user_limits)."
            ) from exc
        raise AccessRefused(refusal_of(source, exc)) from exc
    except (OSError, amqp.exceptions.AMQPError) as exc:
        raise BrokerUnavailable(
            f"no connection to {where(source)} within {connect_timeout.total_seconds():.1f} s: {exc}. "
            "Check that RabbitMQ runs there and that the URL names its host and port."
        ) from exc


def _is_limit(exc: Exception) -> bool:
    """Whether the broker refused one connection too many, which passes, rather than the user or vhost.

    Both are NOT_ALLOWED (530); only the text tells (https://www.rabbitmq.com/docs/vhosts#limits).
    """
    return isinstance(exc, amqp.exceptions.NotAllowed) and "connection limit (" in str(exc)


def refusal_of(source: Connection, exc: Exception) -> str:
    """Return a sentence that names what the broker refused and what to do."""
    if isinstance(exc, amqp.exceptions.NotAllowed):
        return (
            f"the broker at {where(source)} refused vhost {source.virtual_host!r} to user "
            f"{source.userid!r}: {exc}. Create the vhost or grant the user permissions on it."
        )
    return (
        f"the broker at {where(source)} refused user {source.userid!r}: {exc}. "
        "Check user and password in the broker URL."
    )


def where(source: Connection) -> str:
    """Return the address without credentials."""
    return f"{source.hostname or 'localhost'}:{source.port or 5672}"


def without_password(url: str) -> str:
    """Return a URL that may be shown."""
    return str(maybe_sanitize_url(url))

"""A broker that ``UNLOST_BROKER_URL`` names: what tests may do with it, and how a wrong name is told."""

from __future__ import annotations

import socket
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.integration.test_brokers import connects
from unlost.errors import AccessRefused, BrokerError, BrokerUnavailable, HarnessError
from unlost.testing.brokers import Broker, start_broker
from unlost.testing.brokers.endpoint import Endpoint, parse_endpoint
from unlost.testing.brokers.ports import free_ports

LONGEST = 10.0
SECRET = "do-not-show-me"


@pytest.fixture
def environ(broker: Broker) -> dict[str, str]:
    """Name a running broker as if somebody else had started it."""
    return {"UNLOST_BROKER_URL": broker.amqp_url(), "UNLOST_MANAGEMENT_URL": broker.management_url}


@pytest.fixture
def endpoint(broker: Broker) -> Endpoint:
    """Return where the running broker listens."""
    return parse_endpoint(broker.amqp_url(), "url", ("amqp", "amqps"))


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Listen, and never answer."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def failure_of(environ: dict[str, str], expected: type[BrokerError]) -> str:
    """Connect in vain, within the time that is allowed, and return all that a traceback would print."""
    started = time.monotonic()
    with pytest.raises(expected) as failure, start_broker(environ=environ):
        pass
    assert time.monotonic() - started < LONGEST
    return "".join(traceback.format_exception(failure.value))


def test_a_named_broker_is_used_but_not_killed(broker: Broker, environ: dict[str, str]) -> None:
    """Tests get vhosts of their own; what would disturb others is refused."""
    with start_broker(environ=environ) as external:
        assert external.provider == "external"
        assert external.version == broker.version
        assert external.can == frozenset()
        with external.fresh_vhost() as vhost:
            assert connects(vhost.amqp_url)
        assert not connects(vhost.amqp_url)
        for disturb in (external.kill, external.restart, external.pause, external.resume):
            with pytest.raises(HarnessError, match="unset UNLOST_BROKER_URL"):
                disturb()
    assert connects(broker.amqp_url())


def test_a_wrong_password(endpoint: Endpoint, environ: dict[str, str]) -> None:
    """A refused password is told with user and place."""
    wrong = replace(endpoint, password=SECRET).url()
    shown = failure_of({**environ, "UNLOST_BROKER_URL": wrong}, AccessRefused)
    assert f"the broker at {endpoint.place} refused user {endpoint.user!r}" in shown
    assert SECRET not in shown
    assert endpoint.password not in shown


def test_a_missing_vhost(endpoint: Endpoint, environ: dict[str, str]) -> None:
    """A vhost that does not exist is told by its name."""
    shown = failure_of({**environ, "UNLOST_BROKER_URL": endpoint.url("no-such")}, AccessRefused)
    assert f"{endpoint.place} refused user {endpoint.user!r} on vhost 'no-such'" in shown
    assert endpoint.password not in shown


def test_nobody_listens(endpoint: Endpoint, environ: dict[str, str]) -> None:
    """A closed port is told with host and port."""
    (port,) = free_ports(1)
    wrong = replace(endpoint, host="127.0.0.1", port=port)
    shown = failure_of({**environ, "UNLOST_BROKER_URL": wrong.url()}, BrokerUnavailable)
    assert f"no AMQP broker answers at 127.0.0.1:{port}" in shown
    assert endpoint.password not in shown


def test_a_silent_broker(endpoint: Endpoint, environ: dict[str, str], silent_port: int) -> None:
    """A listener that never answers is given up on in time."""
    wrong = replace(endpoint, host="127.0.0.1", port=silent_port)
    shown = failure_of({**environ, "UNLOST_BROKER_URL": wrong.url()}, BrokerUnavailable)
    assert f"no AMQP broker answers at 127.0.0.1:{silent_port}" in shown


def test_a_silent_management_api(endpoint: Endpoint, environ: dict[str, str], silent_port: int) -> None:
    """A management API that never answers is given up on in time, with the variable to set."""
    wrong = replace(endpoint.management(), host="127.0.0.1", port=silent_port)
    shown = failure_of({**environ, "UNLOST_MANAGEMENT_URL": wrong.url()}, BrokerUnavailable)
    assert f"does not answer at 127.0.0.1:{silent_port}" in shown
    assert "set UNLOST_MANAGEMENT_URL" in shown
    assert endpoint.password not in shown


def test_a_management_api_that_is_none(endpoint: Endpoint, environ: dict[str, str]) -> None:
    """An AMQP port given as the management URL is told as such."""
    wrong = replace(endpoint.management(), port=endpoint.port)
    shown = failure_of({**environ, "UNLOST_MANAGEMENT_URL": wrong.url()}, BrokerUnavailable)
    assert f"at {endpoint.place}" in shown


def test_a_wrong_management_password(broker: Broker, environ: dict[str, str]) -> None:
    """Credentials that AMQP accepts and the management API refuses are told with the tag that is needed."""
    right = parse_endpoint(broker.management_url, "url", ("http", "https"))
    wrong = replace(right, password=SECRET)
    shown = failure_of({**environ, "UNLOST_MANAGEMENT_URL": wrong.url()}, AccessRefused)
    assert f"the management API at {right.place} refused user {right.user!r}" in shown
    assert "administrator" in shown
    assert SECRET not in shown

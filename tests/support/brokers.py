"""Brokers for tests: one per provider for the whole run, or one of its own for a test that kills it.

A test that asks for ``broker``, ``vhost`` or ``own_broker`` runs once per provider: on the external
broker if ``UNLOST_BROKER_URL`` is set, else in a container and on a private node of the system's
RabbitMQ; with ``--every-broker`` also in containers of other releases. pytest groups the tests by provider,
so that no more than one shared broker runs at a time.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from functools import cache

import pytest

from unlost.errors import HarnessError
from unlost.testing.brokers import Broker, Vhost, available, candidates, start_broker
from unlost.testing.brokers.docker import IMAGE, connect_engine

REQUIRE = "--require-broker"
EVERY = "--every-broker"
#: Containers of other releases than the usual one; ``--every-broker`` takes those whose image is there.
OTHER_RELEASES = {"docker-4.0": "unlost/rabbitmq:4.0"}
_SCOPES = {"broker": "session", "own_broker": "function"}


def add_options(parser: pytest.Parser) -> None:
    """Add ``--require-broker`` and ``--every-broker``."""
    parser.addoption(
        EVERY, action="store_true", help="run also the tests marked one_broker on every broker that there is"
    )
    parser.addoption(
        REQUIRE, action="store_true", help="fail every test that would be skipped, for want of a broker"
    )


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Run a test once per provider, unless it names its providers itself."""
    for fixture, scope in _SCOPES.items():
        if fixture in metafunc.fixturenames and not _names_providers(metafunc, fixture):
            providers = candidates(None, os.environ)
            if metafunc.config.getoption(EVERY):
                providers += _other_releases()
            elif metafunc.definition.get_closest_marker("one_broker"):
                providers = [_first_available(tuple(providers))]
            metafunc.parametrize(fixture, providers, indirect=True, scope=scope)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """A broker that all tests of a provider share: leave it running."""
    yield from _started(request)


@pytest.fixture
def own_broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """A broker that the test may kill, restart and pause."""
    if request.param == "external":
        pytest.skip("an external broker is not ours to kill")
    yield from _started(request)


@pytest.fixture
def vhost(broker: Broker) -> Iterator[Vhost]:
    """An empty vhost for one test."""
    with broker.fresh_vhost() as fresh:
        yield fresh


def require(provider: str, config: pytest.Config) -> None:
    """Skip the test if ``provider`` cannot be used; under ``--require-broker`` fail it."""
    reason = available(*_place(provider))
    if reason is None:
        return
    if config.getoption(REQUIRE):
        pytest.fail(f"{REQUIRE}: no broker of provider {provider}: {reason}", pytrace=False)
    pytest.skip(f"no broker of provider {provider}: {reason}")


@pytest.hookimpl(wrapper=True)
def fail_skipped(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under ``--require-broker`` a skipped test has failed, whatever it lacks: green means that it ran."""
    report = yield
    if item.config.getoption(REQUIRE) and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{REQUIRE}: skipped: {report.longrepr}"
    return report


def _started(request: pytest.FixtureRequest) -> Iterator[Broker]:
    require(request.param, request.config)
    provider, environ = _place(request.param)
    with start_broker(provider, environ=environ) as started:
        yield started


def _place(name: str) -> tuple[str, Mapping[str, str]]:
    """Return a provider's name, and the environment in which it starts the release that is meant."""
    if name in OTHER_RELEASES:
        return "docker", {**os.environ, IMAGE: OTHER_RELEASES[name]}
    return name, os.environ


@cache
def _other_releases() -> list[str]:
    """Name the containers of other releases that can be started, where Docker's are started at all."""
    if "docker" not in candidates(None, os.environ) or IMAGE in os.environ:
        return []
    try:
        with connect_engine(os.environ) as engine:
            return [name for name, image in OTHER_RELEASES.items() if engine.images.list(name=image)]
    except HarnessError:
        return []


@cache
def _first_available(providers: tuple[str, ...]) -> str:
    usable = (provider for provider in providers if available(provider, os.environ) is None)
    return next(usable, providers[0])


def _names_providers(metafunc: pytest.Metafunc, fixture: str) -> bool:
    return any(mark.args[0] == fixture for mark in metafunc.definition.iter_markers("parametrize"))

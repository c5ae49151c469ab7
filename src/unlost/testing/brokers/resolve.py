"""Choosing a broker: the one that is named, else a container, else a private node."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass

from unlost.errors import ConfigurationError, HarnessError
from unlost.testing.brokers import docker, external, local
from unlost.testing.brokers.base import Broker, NoBroker

logger = logging.getLogger(__name__)

FORCED = "UNLOST_BROKER"


@dataclass(frozen=True)
class Provider:
    """One way to come by a broker.

    Attributes:
        unavailable: Answers why not, or ``None``.
        start: Starts one; raises :class:`~unlost.errors.HarnessError` if it does not come up.
    """

    unavailable: Callable[[Mapping[str, str]], str | None]
    start: Callable[[Mapping[str, str]], Broker]


PROVIDERS: Mapping[str, Provider] = {
    "external": Provider(external.unavailable, external.ExternalBroker),
    "docker": Provider(docker.unavailable, docker.DockerBroker),
    "local": Provider(local.unavailable, local.LocalBroker),
}


def candidates(provider: str | None, environ: Mapping[str, str]) -> list[str]:
    """Name the providers to try, in order.

    A named broker is used or fails: falling back to another would test the wrong one in silence.

    Raises:
        ConfigurationError: There is no such provider.
    """
    if forced := provider or environ.get(FORCED):
        if forced not in PROVIDERS:
            names = ", ".join(PROVIDERS)
            raise ConfigurationError(f"no broker provider {forced!r}: set {FORCED} to one of {names}")
        return [forced]
    return ["external"] if environ.get(external.URL) else ["docker", "local"]


def available(provider: str, environ: Mapping[str, str]) -> str | None:
    """Return ``None`` if ``provider`` can be used, else the reason it cannot.

    For ``docker`` this pulls the image if the engine has none. An external broker counts as usable
    once it is named, so that a wrong name fails loudly instead of being passed over.

    Raises:
        ConfigurationError: There is no such provider.
    """
    (name,) = candidates(provider, environ)
    return PROVIDERS[name].unavailable(environ)


@contextmanager
def start_broker(
    provider: str | None = None,
    *,
    environ: Mapping[str, str],
    providers: Mapping[str, Provider] = PROVIDERS,
) -> Iterator[Broker]:
    """Start a broker, or connect to the one that is named, and end it afterwards.

    Args:
        provider: ``"external"``, ``"docker"`` or ``"local"``; ``None`` leaves it to ``UNLOST_BROKER``,
            else to the order external (if ``UNLOST_BROKER_URL`` is set), docker, local.
        environ: The environment, as a rule ``os.environ``.
        providers: For tests: other ways to come by one.

    Raises:
        NoBroker: None could be had.
        BrokerUnavailable: The external broker does not answer.
        AccessRefused: The external broker refused the URL's user, password or vhost.
        ConfigurationError: A variable makes no sense.
    """
    failures: dict[str, str] = {}
    for name in candidates(provider, environ):
        broker = _try(name, providers[name], environ, failures)
        if broker is not None:
            with closing(broker):
                yield broker
            return
    raise NoBroker(_message(failures))


def _try(
    name: str, provider: Provider, environ: Mapping[str, str], failures: dict[str, str]
) -> Broker | None:
    reason = provider.unavailable(environ)
    if reason is None:
        try:
            return provider.start(environ)
        except HarnessError as exc:
            reason = str(exc)
            logger.warning("broker provider %s failed: %s", name, reason)
    failures[name] = reason
    return None


def _message(failures: Mapping[str, str]) -> str:
    tried = "\n".join(f"  - {name}: {reason}" for name, reason in failures.items())
    return (
        f"no RabbitMQ for the tests. Tried:\n{tried}\n"
        "Do one of these: set UNLOST_BROKER_URL=amqp://user:password@host:port/vhost, start a Docker "
        "engine, or install the package rabbitmq-server."
    )

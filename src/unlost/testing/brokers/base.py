"""What every broker offers to tests, wherever it comes from."""

from __future__ import annotations

import logging
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import ClassVar

from unlost.errors import AccessRefused, BrokerUnavailable, HarnessError
from unlost.testing.brokers.endpoint import Endpoint
from unlost.testing.brokers.probe import Admin, check_amqp
from unlost.testing.waiting import wait_until

logger = logging.getLogger(__name__)

#: Schedulers that find nothing to do sleep instead of spinning: several nodes share a machine with the tests
#: (https://www.rabbitmq.com/docs/runtime#busy-waiting).
NO_BUSY_WAITING = "+sbwt none +sbwtdcpu none +sbwtdio none"

BOOT_PATIENCE = timedelta(seconds=90)
"""For a node to start on a slow, shared machine; 4-11 s are usual."""
VHOST_PATIENCE = timedelta(seconds=15)
"""For creating or deleting one vhost; deleting a large one takes seconds."""


class NoBroker(HarnessError):
    """No broker could be had; the message lists what was tried and what to install or set."""


class NodeGone(HarnessError):
    """A node that should be starting has ended; the message holds the end of its log."""


@dataclass(frozen=True)
class Vhost:
    """A vhost of one's own.

    Attributes:
        name: Its name.
        amqp_url: ``amqp://user:password@host:port/name``.
        management_url: ``http://user:password@host:port``, without ``/api``.
    """

    name: str
    amqp_url: str = field(repr=False)
    management_url: str = field(repr=False)


class Broker(ABC):
    """A running RabbitMQ node with the management plugin.

    Args:
        amqp: The AMQP listener; its path is ignored.
        management: The management listener.

    Attributes:
        provider: ``"external"``, ``"docker"`` or ``"local"``.
        version: RabbitMQ's version, such as ``(4, 3, 6)``.
        can: Which of ``"kill"``, ``"restart"``, ``"pause"`` and ``"control"`` (rabbitmqctl) it supports.
    """

    provider: ClassVar[str]
    can: ClassVar[frozenset[str]] = frozenset()
    version: tuple[int, int, int]

    def __init__(self, amqp: Endpoint, management: Endpoint) -> None:
        self._amqp = amqp
        self._management = management

    def __repr__(self) -> str:
        return f"<{self.provider} broker at {self._amqp.place}>"

    @property
    def management_url(self) -> str:
        """``http://user:password@host:port``, without ``/api``."""
        return self._management.url()

    def amqp_url(self, vhost: str = "/") -> str:
        """Return the AMQP URL of a vhost, with the password."""
        return self._amqp.url(vhost)

    @contextmanager
    def fresh_vhost(self) -> Iterator[Vhost]:
        """Create an empty vhost with all permissions, and delete it at the end.

        A broker that is dead or paused at the end is tolerated: the vhost goes with a private
        node anyway, and on an external broker a warning names what stayed. The same stays behind
        if this process is killed.

        Raises:
            BrokerUnavailable: The broker does not answer.
            AccessRefused: The user may not create vhosts.
        """
        name = f"unlost-{secrets.token_hex(6)}"
        self._admin().create_vhost(name, self._amqp.user)
        self._wait_for_vhost(name)
        try:
            yield Vhost(name, self.amqp_url(name), self.management_url)
        finally:
            self._drop_vhost(name)

    def kill(self) -> None:
        """Kill the node with SIGKILL: what it had not written to disk is gone.

        RabbitMQ 3.10 needs a moment after a quorum queue was declared: a node killed within half
        a second of that comes back with the queue leaderless.
        """
        raise self._cannot("be killed")

    def restart(self) -> None:
        """Start the node again on the same ports and data, after a kill or after a clean stop.

        Returns when AMQP and the management API answer.

        Raises:
            HarnessError: It did not come up; the node's last log lines are in the message.
        """
        raise self._cannot("be restarted")

    def pause(self) -> None:
        """Freeze the node: its connections stay open and nobody answers."""
        raise self._cannot("be paused")

    def resume(self) -> None:
        """Let a paused node go on."""
        raise self._cannot("be resumed")

    def rabbitmqctl(self, *_arguments: str) -> str:
        """Run a command on the node and return what it prints.

        Raises:
            HarnessError: It failed; the message holds what it printed.
        """
        raise self._cannot("be controlled")

    def log_tail(self) -> str:
        """Return the last lines of the node's log; empty where that cannot be read."""
        return self._last_lines()

    @abstractmethod
    def close(self) -> None:
        """End what was started and leave nothing behind; a second call does nothing."""

    def _has_ended(self) -> bool:
        """Whether the node's process is no more."""
        return False

    def _last_lines(self) -> str:
        """Return the end of the node's log."""
        return ""

    def _wait_ready(self) -> None:
        """Wait until AMQP and management answer, and learn the version."""
        refusals: list[str] = []
        wait_until(
            lambda: self._answers(refusals),
            BOOT_PATIENCE,
            f"the {self.provider} broker at {self._amqp.place} answers",
            why_not=lambda: f"{refusals[-1]}; the node's last lines:\n{self._last_lines()}",
        )

    def _answers(self, refusals: list[str]) -> bool:
        if self._has_ended():
            log = self._last_lines()
            raise NodeGone(f"the {self.provider} broker ended while it was starting; its last lines:\n{log}")
        try:
            self.version = Admin(self._management).version()
            check_amqp(replace(self._amqp, path="/"))
        except (BrokerUnavailable, AccessRefused) as exc:
            # Refused, too: during boot the listeners are up before the users are.
            refusals.append(str(exc))
            return False
        return True

    def _admin(self) -> Admin:
        return Admin(self._management, VHOST_PATIENCE)

    def _wait_for_vhost(self, name: str) -> None:
        """On a cluster a vhost starts on the other nodes a little after its creation was answered."""

        def opens() -> bool:
            try:
                check_amqp(replace(self._amqp, path=name))
            except AccessRefused:
                return False
            return True

        wait_until(opens, VHOST_PATIENCE, f"vhost {name!r} opens")

    def _drop_vhost(self, name: str) -> None:
        try:
            self._admin().delete_vhost(name)
        except BrokerUnavailable as exc:
            logger.warning("vhost %s was not deleted: %s", name, exc)

    def _cannot(self, what: str) -> HarnessError:
        return HarnessError(
            f"a broker of provider {self.provider!r} cannot {what}: unset UNLOST_BROKER_URL "
            "to let unlost start a node of its own"
        )

"""A private RabbitMQ node on this machine, from an installed ``rabbitmq-server``."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from unlost.errors import HarnessError
from unlost.testing.brokers.base import Broker
from unlost.testing.brokers.node import find_programs, make_directory, make_node
from unlost.testing.brokers.ward import Ward

_LOG_LINES = 20
_CONTROL_PATIENCE = timedelta(seconds=60)


class LocalBroker(Broker):
    """A node of its own name, ports and data, bound to 127.0.0.1; needs no root.

    However this process ends, the node ends with it (see :mod:`unlost.testing.brokers.guardian`).

    Args:
        environ: ``PATH`` to find RabbitMQ on, ``TMPDIR`` for its data.

    Raises:
        HarnessError: RabbitMQ is not installed, or the node did not come up.
    """

    provider = "local"
    can = frozenset({"kill", "restart", "pause", "control"})

    def __init__(self, environ: Mapping[str, str]) -> None:
        programs = find_programs(environ)
        if isinstance(programs, str):
            raise HarnessError(programs)
        directory, lock = make_directory(environ)
        with Ward.making(directory, lock):
            self._node = make_node(directory, programs)
            self._ward = Ward(self._node.directory, lock, self._node.specification)
        super().__init__(self._node.amqp, self._node.management)
        try:
            self._tell("start")
            self._wait_ready()
        except BaseException:
            self.close()
            raise

    def kill(self) -> None:
        """Kill the node with SIGKILL, paused or not."""
        self._tell("kill")

    def restart(self) -> None:
        """Start the node again on the same ports and data, after a kill or after a clean stop."""
        self._tell("stop")
        self._tell("start")
        self._wait_ready()

    def pause(self) -> None:
        """Stop the node's process where it is (SIGSTOP)."""
        self._tell("pause")

    def resume(self) -> None:
        """Let a paused node go on (SIGCONT)."""
        self._tell("resume")

    def rabbitmqctl(self, *arguments: str) -> str:
        """Run a command on the node and return what it prints.

        Raises:
            HarnessError: It failed; the message holds what it printed.
        """
        specification = self._node.specification
        done = subprocess.run(
            [Path(specification["server"][0]).with_name("rabbitmqctl"), *arguments],
            env=specification["environ"],
            capture_output=True,
            timeout=_CONTROL_PATIENCE.total_seconds(),
            check=False,
        )
        text = (done.stdout + done.stderr).decode(errors="replace")
        if done.returncode:
            raise HarnessError(f"rabbitmqctl {' '.join(arguments)} on {self!r}: {text}")
        return text

    def close(self) -> None:
        """Kill the node and remove its directory."""
        self._ward.close()

    def pids(self) -> dict[str, int | None]:
        """Return the process ids of ``guardian``, ``epmd`` and ``server``; ``None`` for one that ended."""
        answer = self._tell("status")
        return {"guardian": self._ward.pid, "epmd": answer["epmd"], "server": answer["server"]}

    def _has_ended(self) -> bool:
        return self.pids()["server"] is None

    def _last_lines(self) -> str:
        try:
            lines = self._node.log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return "(no log)"
        return "\n".join(lines[-_LOG_LINES:])

    def _tell(self, command: str) -> dict[str, Any]:
        """Have the guardian do something."""
        return self._ward.tell(command, f"the private node at {self._amqp.place}")


def unavailable(environ: Mapping[str, str]) -> str | None:
    """Say why no private node can be started, or ``None``."""
    programs = find_programs(environ)
    return programs if isinstance(programs, str) else None

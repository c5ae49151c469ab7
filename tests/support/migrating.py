"""Migrations for tests: a vhost with something to migrate, and a child process that dies at a given point.

:func:`main` runs in a child (:mod:`tests.support.forks`), carries out a migration and kills itself with
SIGKILL at the n-th point of danger: before and after each line of the journal, in the middle of one, and
between a confirm and its ack.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import amqp
from kombu import Connection

from tests.support.forks import Ended, Forks
from tests.support.raw_amqp import open_channel
from unlost.broker import journal as journal_module
from unlost.broker.drain import Patience, read_facts
from unlost.broker.journal import Journal, create_journal, open_journal
from unlost.broker.management import Management
from unlost.broker.migrate import Migration, Result
from unlost.broker.mover import Mover
from unlost.testing.brokers import Vhost
from unlost.topology.migration import Plan
from unlost.topology.migration_plan import plan_queue
from unlost.topology.replacement import QueueChange

QUICK = Patience(wait=timedelta(seconds=60), settle=timedelta(seconds=6), window=50)


def management_of(vhost: Vhost) -> Management:
    """Return the management API of a vhost."""
    return Management(vhost.management_url, vhost.name)


def plan_of(vhost: Vhost, change: QueueChange) -> Plan:
    """Plan a change from what is in the vhost."""
    with management_of(vhost) as management:
        return plan_queue(change, read_facts(management))


def migrate(
    vhost: Vhost,
    file: Path,
    plan: Plan | None = None,
    *,
    finish: bool = True,
    back: bool = False,
    patience: Patience = QUICK,
) -> Result:
    """Carry out a plan, or go on with the journal in ``file``."""
    with management_of(vhost) as management, _journal(file, plan, vhost) as journal:
        migration = Migration(management, Connection(vhost.amqp_url), journal, patience=patience)
        with closing(migration):
            return migration.go_back() if back else migration.go_on(finish=finish)


@contextmanager
def _journal(file: Path, plan: Plan | None, vhost: Vhost) -> Iterator[Journal]:
    if plan is None:
        with open_journal(file, vhost.name) as journal:
            yield journal
    else:
        with create_journal(file, plan, vhost.name) as journal:
            yield journal


def fill(vhost: Vhost, queue: str, count: int, start: int = 0, **properties: Any) -> None:
    """Publish numbered messages to a queue, persistent and committed."""
    with open_channel(vhost.amqp_url) as channel:
        channel.tx_select()
        for number in range(start, start + count):
            message = amqp.Message(str(number), delivery_mode=2, **properties)
            channel._basic_publish(message, "", queue, mandatory=True)
        channel.tx_commit()


def bodies(vhost: Vhost, queue: str) -> list[int]:
    """Take all messages out of a queue, in their order."""
    found: list[int] = []
    with open_channel(vhost.amqp_url) as channel:
        while message := channel.basic_get(queue, no_ack=True):
            found.append(int(message.body))
    return found


def run_and_die(children: Forks, vhost: Vhost, file: Path, at: int, **options: Any) -> Ended:
    """Go on with a journal in a child that kills itself at its ``at``-th point of danger."""
    settings = {
        "amqp_url": vhost.amqp_url,
        "management_url": vhost.management_url,
        "vhost": vhost.name,
        "file": str(file),
        "at": at,
        **options,
    }
    return children.run(settings)


class _Fuse:
    """Counts points of danger and kills the process at one of them."""

    def __init__(self, at: int) -> None:
        self._left = at

    def pass_by(self) -> bool:
        """Return whether this is the point to die at."""
        self._left -= 1
        return self._left == 0

    def burn(self) -> None:
        """Die if this is the point."""
        if self.pass_by():
            os.kill(os.getpid(), signal.SIGKILL)


def _arm(fuse: _Fuse) -> None:
    append = journal_module._append
    ack = Mover._on_ack
    acked = [0]

    def dangerous_append(file: int, record: Mapping[str, Any]) -> None:
        fuse.burn()
        if fuse.pass_by():
            os.write(file, json.dumps(record).encode()[:17])
            os.kill(os.getpid(), signal.SIGKILL)
        append(file, record)
        fuse.burn()

    def dangerous_ack(self: Mover, tag: int, multiple: bool) -> None:
        acked[0] += 1
        if acked[0] % 500 == 20:
            fuse.burn()
        ack(self, tag, multiple)

    journal_module._append = dangerous_append
    Mover._on_ack = dangerous_ack  # type: ignore[method-assign]


def main(settings: Mapping[str, Any]) -> None:
    """Go on with a journal, and die at the given point."""
    vhost = Vhost(settings["vhost"], settings["amqp_url"], settings["management_url"])
    patience = Patience(
        wait=QUICK.wait,
        settle=timedelta(seconds=settings.get("settle", 6)),
        window=settings.get("window", 50),
    )
    _arm(_Fuse(settings["at"]))
    result = migrate(
        vhost,
        Path(settings["file"]),
        finish=settings.get("finish", True),
        back=settings.get("back", False),
        patience=patience,
    )
    print(result.state)

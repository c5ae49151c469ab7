"""The memory of a process that publishes very many tasks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.apps import declare, shop
from unlost.broker.management import Management
from unlost.testing.brokers import Vhost
from unlost.topology.objects import Policy

pytestmark = pytest.mark.one_broker

#: What allocator and caches may still take once a tenth is published, in KiB.
SLACK = 8 * 1024

SCRIPT = textwrap.dedent(
    """
    import json, os, resource, sys
    from pathlib import Path
    from celery import Celery
    import unlost
    from tests.support.apps import WORK, shop

    url, folder, count, hoards = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "True"
    app = Celery("shop", broker=url, set_as_current=False)
    unlost.install(app, topology=shop(), store=f"sqlite:///{folder}/ledger.sqlite")

    @app.task(base=unlost.ReliableTask, name="shop.count", queue=WORK)
    def numbered(number):
        pass

    sizes, hoard = [], []
    page = os.sysconf("SC_PAGE_SIZE") // 1024
    def note(bulk):
        sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * page)

    def items():
        for number in range(count):
            if hoards:
                hoard.append({"number": number, "what a leak keeps": "x" * 1000 + str(number)})
            yield (number,)

    bulk = numbered.apply_many(items(), progress=note)
    bulk.raise_for_problems()
    print(json.dumps(sizes))
    """
)


def growth(vhost: Vhost, folder: Path, count: int, *, hoards: bool = False) -> int:
    """Return by how many KiB a process grows from its largest size in the first tenth to that in the rest."""
    declare(vhost, shop())
    with Management(vhost.management_url, vhost.name) as management:
        # The broker need not keep them all.
        management.put_policy(
            Policy(
                name="short",
                pattern="^shop",
                apply_to="queues",
                priority=100,
                definition={"max-length": 1000, "overflow": "drop-head"},
            )
        )
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, vhost.amqp_url, str(folder), str(count), str(hoards)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    sizes: list[int] = json.loads(done.stdout)
    tenth = len(sizes) // 10
    assert len(sizes) >= count // 1000
    print(f"\n{count} messages: {max(sizes[:tenth])} KiB in the first tenth, {max(sizes)} KiB in all")
    return max(sizes[tenth:]) - max(sizes[:tenth])


def test_memory_does_not_grow_with_the_number_of_messages(vhost: Vhost, tmp_path: Path) -> None:
    """A bulk of thirty thousand takes what its window takes."""
    assert growth(vhost, tmp_path, 30_000) < SLACK


def test_a_leak_would_be_seen(vhost: Vhost, tmp_path: Path) -> None:
    """Mutation control: a process that keeps a kilobyte for each message is found to grow."""
    assert growth(vhost, tmp_path, 30_000, hoards=True) > SLACK


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_memory_is_flat_over_a_million_messages(vhost: Vhost, tmp_path: Path) -> None:
    """The same for a million."""
    assert growth(vhost, tmp_path, 1_000_000) < SLACK

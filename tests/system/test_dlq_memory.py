"""Looking at letters takes no more memory for many than for few."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

from tests.support.apps import declare, shop
from tests.support.letters import LETTERS, numbered, put
from unlost.testing.brokers import Vhost

pytestmark = [pytest.mark.system, pytest.mark.one_broker]

#: Runs the command line and says on the last line of stderr how large its process has been.
_MEASURED = """
import resource, sys
from unlost.cli import main
try:
    main(sys.argv[1:])
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, file=sys.stderr)
"""

#: What more letters may cost, in MiB: a window of them, not all.
SLACK = 25
MILLION = 1_000_000
LARGEST = 200


@dataclass(frozen=True)
class Look:
    """What ``unlost dlq show`` said, and what it took."""

    letters: int
    mib: int
    seconds: float


def look(vhost: Vhost, *arguments: str) -> Look:
    """Show the groups of the queue of letters in a process of its own."""
    command = ["dlq", "show", LETTERS, "--broker", vhost.amqp_url, "--management", vhost.management_url]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *command, "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    seconds = time.monotonic() - began
    assert done.returncode == 1, done.stderr  # letters were found
    return Look(json.loads(done.stdout)["letters"], int(done.stderr.split()[-1]), seconds)


def test_more_letters_take_no_more_memory(vhost: Vhost) -> None:
    """Ten thousand letters are grouped in about the memory of a hundred, and all are there afterwards."""
    declare(vhost, shop())
    put(vhost.amqp_url, numbered(100))
    few = look(vhost)
    put(vhost.amqp_url, numbered(9_900))
    many = look(vhost)
    assert (few.letters, many.letters) == (100, 10_000)
    assert many.mib < few.mib + SLACK
    assert look(vhost).letters == 10_000


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_a_million_letters_are_shown_in_200_mb(vhost: Vhost) -> None:
    """The groups of a million letters are shown by a process of less than 200 MiB."""
    declare(vhost, shop())
    put(vhost.amqp_url, numbered(MILLION))
    seen = look(vhost)
    print(f"{seen.letters} letters in {seen.seconds:.0f} s, {seen.mib} MiB")
    assert seen.letters == MILLION
    assert seen.mib < LARGEST

"""``unlost dlq`` as an operator meets it: the commands of the page, in their order, on a real broker."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from tests.support.letters import DLX, a_letter, numbered, put
from tests.support.publishing import drained, ids
from tests.support.signing import SEAL, SECRET, VARIABLE
from unlost.broker.apply import apply
from unlost.broker.management import Management
from unlost.cli import main
from unlost.core.message import Outgoing
from unlost.testing.brokers import Vhost
from unlost.topology.model import Delay, Topology, WorkQueue

pytestmark = pytest.mark.one_broker

PAGE = Path(__file__).parents[2] / "docs" / "dead-letters.md"
WORK = "shop.payments"
LETTERS = f"{WORK}.dlq"


class Shell:
    """Runs commands against a vhost, in a folder."""

    def __init__(self, vhost: Vhost, folder: Path) -> None:
        self.vhost = vhost
        self.environment = {
            "UNLOST_BROKER_URL": vhost.amqp_url,
            "UNLOST_MANAGEMENT_URL": vhost.management_url,
            "XDG_CONFIG_HOME": str(folder),
            "HOME": str(folder),
        }

    def run(self, line: str) -> Result:
        """Run a command line that begins with ``unlost``."""
        (_, *arguments) = shlex.split(line)
        return CliRunner(env=self.environment).invoke(main, arguments, catch_exceptions=False)

    def json(self, line: str) -> dict[str, Any]:
        """Run a command line and return the object that it prints."""
        result = self.run(f"{line} --json")
        found: dict[str, Any] = json.loads(result.stdout)
        return found


@pytest.fixture
def shell(vhost: Vhost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A vhost with a topology and a folder to work in."""
    with Management(vhost.management_url, vhost.name) as management:
        apply(the_topology(management.version()), management)
    monkeypatch.chdir(tmp_path)
    return Shell(vhost, tmp_path)


def the_topology(version: tuple[int, int]) -> Topology:
    """Return an application of one work queue, and what the page declares beside it."""
    (block,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    beside = yaml.safe_load(block)
    if version < (4, 0):
        # Older brokers have no limit unless one is set, and do not take "none".
        del beside["objects"]["policies"]
    return Topology(
        name="shop",
        queues={WORK: WorkQueue()},
        delay=Delay(levels=2),
        objects=Topology.model_validate(beside).objects,
    )


def payments(*letters: Outgoing) -> list[Outgoing]:
    """Return letters as the workers of the payments publish them."""
    return [each.to(DLX, WORK) for each in letters]


def the_letters() -> Iterator[Outgoing]:
    """Make what the page talks of: order 17, some of its kind, and some refunds."""
    yield a_letter("order-17", order=17, queue=WORK)
    yield from numbered(4, queue=WORK)
    for order in (50, 150):
        yield a_letter(f"refund-{order}", task="shop.refund", order=order, queue=WORK)


def commands() -> list[str]:
    """Return the commands of the page, without comments."""
    (block,) = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [line.partition(" #")[0].strip() for line in block.splitlines()]


def test_the_commands_of_the_page_do_what_it_says(shell: Shell) -> None:
    """Each command of the page runs, none ends with an error, and what it says it changes is changed."""
    put(shell.vhost.amqp_url, payments(*the_letters()))
    said: dict[str, str] = {}
    for line in commands():
        result = shell.run(line)
        assert result.exit_code in (0, 1), f"{line}: {result.output}"
        said[line] = result.output
    output = "\n".join(said.values())
    assert "shop.payments.dlq" in output
    assert "fcf2bc5621" in said["unlost dlq show shop.payments.dlq"]
    assert "first published" in output
    assert "5 letters would be sent back" in output
    assert "5 letters sent back" in output
    assert "2 letters parked in shop.parked" in output
    assert "1 letters would be sent back" in output
    assert 'unlost_redriven_letters_total{queue="shop.payments.dlq",outcome="sent"} 5' in output
    assert sorted(ids(drained(shell.vhost, WORK))) == sorted(
        ["order-17.1.1", *(f"m{number}.1.1" for number in range(4))]
    )


def test_a_group_can_be_sent_back_by_the_name_that_show_gave_it(shell: Shell) -> None:
    """Whatever the groups are made by, the same ``--by`` and the group's name choose its letters."""
    put(shell.vhost.amqp_url, payments(*the_letters()))
    groups = shell.json(f"unlost dlq show {LETTERS} --by task")["groups"]
    assert [each["letters"] for each in groups] == [5, 2]
    refunds = groups[1]["id"]
    assert shell.json(f"unlost dlq redrive {LETTERS} --by task --group {refunds}")["sent"] == 2
    assert shell.run(f"unlost dlq show {LETTERS} --by nothing").exit_code == 2


def test_secrets_are_hidden_in_what_is_shown_and_in_nothing_else(shell: Shell, tmp_path: Path) -> None:
    """A password is hidden in payload, exception and traceback; the message that is sent back has it."""
    failure = {"exception": "login with hunter22 failed", "traceback": "Traceback\nLogin: hunter22"}
    letter = a_letter("m1", queue=WORK, failure=failure, kwargs={"password": "hunter22", "name": "Ann"})
    put(shell.vhost.amqp_url, payments(letter))
    for line in ("", " --letters", " m1", " m1 --json", " --json"):
        shown = shell.run(f"unlost dlq show {LETTERS}{line}").output
        assert "hunter22" not in shown
    assert "Ann" in shell.run(f"unlost dlq show {LETTERS} m1").output
    assert "Ann" not in shell.run(f"unlost dlq show {LETTERS} m1 --redact name").output
    shell.run(f"unlost dlq redrive {LETTERS} --blind --yes")
    (message,) = drained(shell.vhost, WORK)
    assert json.loads(message.body)[1]["password"] == "hunter22"


def test_a_mistake_in_a_call_is_said_in_one_line(shell: Shell) -> None:
    """A wrong queue, expression or edit ends with status 2 and one line that names it, and sends nothing."""
    put(shell.vhost.amqp_url, payments(*numbered(2, queue=WORK)))
    for line, names in (
        ("unlost dlq show no.such.dlq", "no.such.dlq"),
        (f"unlost dlq redrive {LETTERS} --where 'kwargs.order >' --yes", "kwargs.order >"),
        (f"unlost dlq redrive {LETTERS} --edit order=1 --yes", "--app"),
        (f"unlost dlq redrive {LETTERS} --app nowhere:app --yes", "nowhere:app"),
        (f"unlost dlq park {LETTERS} {LETTERS} --reason x --yes", LETTERS),
        ("unlost dlq list --queue no.such.dlq", "no.such.dlq"),
    ):
        result = shell.run(line)
        assert (result.exit_code, result.stdout) == (2, ""), line
        assert names in result.stderr
        assert result.stderr.startswith("error: ")
        assert len(result.stderr.splitlines()) == 1
    assert len(drained(shell.vhost, LETTERS)) == 2


def test_an_archive_table_takes_and_gives_letters(shell: Shell, tmp_path: Path) -> None:
    """``park`` and ``discard`` go to a database, ``show`` and ``import`` take from it; each says how many."""
    put(shell.vhost.amqp_url, payments(*numbered(3, queue=WORK)))
    url = f"sqlite:///{tmp_path}/letters.sqlite"
    assert shell.run(f"unlost dlq import {url}").exit_code == 2
    parked = shell.run(f"unlost dlq park {LETTERS} {url} --id m0 --reason later --yes")
    assert f"1 letters parked in sqlite:///{tmp_path}/letters.sqlite" in parked.output
    assert shell.json(f"unlost dlq discard {LETTERS} {url} --reason tests --yes")["sent"] == 2
    assert shell.json(f"unlost dlq show {url} --by task")["groups"][0]["letters"] == 3
    assert shell.json(f"unlost dlq import {url} --id m0")["sent"] == 1
    assert shell.json(f"unlost dlq import {url} --id m0 --yes")["sent"] == 1
    assert shell.json(f"unlost dlq import {url}")["sent"] == 2
    assert len(drained(shell.vhost, LETTERS)) == 1


def test_a_letter_without_a_signature_goes_on_the_operators_word(shell: Shell) -> None:
    """With keys it stays, and the command names the way out; with ``--trust`` it is signed and sent."""
    put(shell.vhost.amqp_url, payments(*numbered(1, queue=WORK)))
    shell.environment["UNLOST_SIGNING"] = VARIABLE
    refused = shell.run(f"unlost dlq redrive {LETTERS} --blind --yes")
    assert (refused.exit_code, "1 stay: unsigned" in refused.output) == (1, True)
    assert "--trust" in refused.output
    assert SECRET not in refused.output
    assert shell.json(f"unlost dlq redrive {LETTERS} --blind --trust --yes")["sent"] == 1
    (message,) = drained(shell.vhost, WORK)
    body = message.body if isinstance(message.body, bytes) else message.body.encode()
    assert SEAL.flaw_of(message.headers, message.properties, body) is None

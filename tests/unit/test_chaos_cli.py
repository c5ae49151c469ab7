"""What ``unlost chaos run`` refuses, before it has started anything, and how it says so."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from unlost.chaos import KillBroker, KillNode, KillStore, Workload
from unlost.chaos.nemesis import Nemesis
from unlost.chaos.runner import Place, Plan, Run
from unlost.cli import main
from unlost.errors import HarnessError
from unlost.testing.brokers import Vhost

WORKLOAD = f"{__name__}:Nothing"
RUN = ["chaos", "run", "--app", "nothing:app", "--json"]


@dataclass(frozen=True, kw_only=True)
class Nothing(Workload):
    """Is never published."""

    def publish(self, number: int) -> None:
        """Is not called."""

    def value_of(self, task: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Is not called."""

    def effects(self) -> Iterable[tuple[str, int]]:
        """Is not called."""
        return ()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where runs would be kept: nothing may be left there."""
    made = tmp_path / "temporary"
    made.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    # Nobody is there: what would be refused only after the broker is started, fails on it.
    monkeypatch.setenv("UNLOST_BROKER_URL", "amqp://guest:guest@127.0.0.1:1")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    yield made
    assert not list(made.iterdir())


def refusal(*arguments: str, workload: str = WORKLOAD) -> str:
    """Return what is said of arguments that are refused as such."""
    done = CliRunner().invoke(main, [*RUN, "--workload", workload, *arguments])
    assert done.exit_code == 2, done.output
    assert isinstance(done.exception, SystemExit)
    said = done.output.strip()
    assert "pydantic" not in said
    return said


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("KillTime", "there is no 'KillTime'; there are ClockSkew, CloseConnections, .* StopWorkers$"),
        ("KillWorkers:every", "not of the form name=value"),
        ("KillWorkers:evry=2", "KillWorkers has no evry; it has every, lasting, targets, times$"),
        ("KillWorkers:every=soon", "every: Input should be a valid timedelta"),
        ("KillWorkers:every=-1", "every and times must be more than zero"),
        ("KillWorkers:times=0", "every and times must be more than zero"),
        ("KillWorkers:every=1,times=2", "give every or times, not both"),
        ("KillWorkers:targets=moon", "KillWorkers: targets are child, parent, group, not"),
        ("LinkFault:links=moon", "worker"),
    ],
)
def test_a_nemesis_that_there_is_not(given: str, why: str) -> None:
    """The option is named, what is wrong with it, and what there is instead."""
    said = refusal("--nemesis", given)
    assert said.startswith("error: --nemesis")
    assert re.search(why, said)


@pytest.mark.parametrize(
    ("workload", "why"),
    [
        ("nothing:Here", "--workload: 'nothing:Here' cannot be imported"),
        ("bank.workload", "'bank.workload' is not of the form module:attribute"),
        ("unlost.chaos:KillWorkers", "is no dataclass that derives from unlost.chaos.Workload"),
        ("unlost.chaos:Workload", "does not define effects, publish, value_of"),
    ],
)
def test_a_workload_that_there_is_not(workload: str, why: str) -> None:
    """The option is named."""
    assert why in refusal(workload=workload)


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("x", "--option: 'x' is not of the form name=value"),
        ("x=1", f"workload {WORKLOAD} has no x; it has"),
        ("rate=5", "--option: rate has an option of its own, --rate"),
        ("duration=5", "--option: duration has an option of its own, --minutes"),
    ],
)
def test_a_field_that_the_workload_has_not(option: str, why: str) -> None:
    """Nothing is passed over in silence."""
    assert why in refusal("--option", option)


@pytest.mark.parametrize("option", ["--minutes", "--rate", "--threads", "--workers", "--concurrency"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_a_number_that_makes_no_run(option: str, value: str) -> None:
    """None of a thing, or without end."""
    assert f"Invalid value for '{option}'" in refusal(option, value)


@pytest.mark.parametrize("option", ["--html", "--record"])
def test_a_file_that_cannot_be_written_is_refused_first(option: str, tmp_path: Path) -> None:
    """Not when the run is over and its figures are lost."""
    (tmp_path / "file").touch()
    assert f"{option}: {tmp_path}/file/x cannot be written" in refusal(option, f"{tmp_path}/file/x")
    assert "is a directory" in refusal(option, str(tmp_path))


def test_containers_need_an_engine(tmp_path: Path) -> None:
    """It is said where none answers."""
    assert f"no Docker engine answers at {tmp_path}/nobody.sock" in refusal("--image", "bank:chaos")


@pytest.mark.parametrize(
    ("nemesis", "why"),
    [
        (KillNode(), "KillNode needs a cluster: three nodes (nodes=3, --nodes 3)"),
        (KillStore(), "KillStore needs a store server of ours (store="),
        (KillBroker(), "KillBroker needs a broker of ours, which UNLOST_BROKER_URL's is not"),
    ],
)
def test_what_a_place_lacks_is_named_with_the_option(nemesis: Nemesis, why: str, tmp_path: Path) -> None:
    """In the plugin's words and in the command's."""
    plan = Plan(app="a:b", workload="c:D", options={}, environment={}, nemeses=[nemesis], messages=1, rate=1)
    with pytest.raises(HarnessError) as refused:
        Run(plan, Place(vhost=Vhost("x", "amqp://x", "http://x")), tmp_path)
    assert why in str(refused.value)


@pytest.mark.parametrize("app", ["bank.app", "bank.app:", ":app"])
def test_an_app_that_names_nothing(app: str) -> None:
    """Said before a broker is started for it."""
    assert f"--app: {app!r} is not of the form module:attribute" in refusal("--app", app)


def test_a_variable_needs_a_value() -> None:
    """The option is named."""
    assert "--env: 'HERE' is not of the form name=value" in refusal("--env", "HERE")

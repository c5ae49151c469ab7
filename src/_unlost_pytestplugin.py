"""The pytest plugin of unlost: the marker ``chaos``, and the fixture of the same name.

pytest loads this in every run of every project that has unlost installed, so it imports nothing that pytest
has not imported already; the kit loads when a test asks for the fixture.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from unlost.chaos.kit import Chaos
    from unlost.chaos.places import Places

_PROPERTY = "unlost_chaos"
_OPTIONS = frozenset({"seed", "nodes", "store"})


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--chaos-seed``."""
    help_text = "seed of the nemeses, instead of the marker's"
    parser.getgroup("chaos").addoption("--chaos-seed", type=int, metavar="N", help=help_text)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        "chaos(seed=1, nodes=1, store=None): a test that uses the fixture chaos: the seed of its nemeses, "
        "the nodes of its broker (1, or 3 for a cluster), its store (None for a file, postgresql, mariadb, "
        "redis, or a URL)",
    )


@pytest.fixture(scope="session")
def _chaos_places() -> Iterator[Places]:
    from unlost.chaos.places import Places
    from unlost.config import environment

    with Places(environment()) as places:
        yield places


@pytest.fixture
def chaos(request: pytest.FixtureRequest, _chaos_places: Places) -> Iterator[Chaos]:
    """Run a workload through an application under faults, and check its history."""
    from unlost.chaos.kit import Chaos
    from unlost.config import environment

    chosen = _chosen(request.node.get_closest_marker("chaos"))
    usual, asked = chosen.pop("seed", 1), request.config.getoption("--chaos-seed")
    seed = usual if asked is None else asked
    kit = Chaos(
        _chaos_places,
        request.getfixturevalue("tmp_path") / "chaos",
        environ=environment(),
        seed=seed,
        repeat=f"pytest {shlex.quote(request.node.nodeid)} --chaos-seed={seed}",
        **chosen,
    )
    yield kit
    request.node.user_properties += [(_PROPERTY, outcome.summary()) for outcome in kit.outcomes]
    if not all(outcome.is_checked for outcome in kit.outcomes):
        pytest.fail("a chaos run was not checked: call run.check(NothingLost(), ...)", pytrace=False)


def _chosen(marker: pytest.Mark | None) -> dict[str, Any]:
    if marker is None:
        return {}
    if marker.args or not marker.kwargs.keys() <= _OPTIONS:
        raise pytest.UsageError(f"the marker chaos takes {', '.join(sorted(_OPTIONS))} by name, nothing else")
    return dict(marker.kwargs)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was injured in each run, and how often."""
    told = [
        (report.nodeid, value)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "teardown"
        for name, value in report.user_properties
        if name == _PROPERTY
    ]
    if told:
        terminalreporter.section("chaos")
        for nodeid, line in told:
            terminalreporter.line(f"{nodeid}: {line}")

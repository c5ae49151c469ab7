"""The publishing process of a chaos run records what it was told, and claims nothing that is not proved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from unlost.chaos.client import publish
from unlost.chaos.history import Recorder, load
from unlost.chaos.workload import Workload
from unlost.errors import Unroutable


@dataclass(frozen=True, kw_only=True)
class Failing(Workload):
    """A workload of which the odd messages cannot be routed."""

    def publish(self, number: int) -> None:
        """Refuse the odd ones."""
        if number % 2:
            raise Unroutable("nobody listens")

    def value_of(self, _task: str, _args: Sequence[Any], _kwargs: Mapping[str, Any]) -> str | None:
        """Promise nothing."""

    def effects(self) -> Iterator[tuple[str, int]]:
        """Have none."""
        return iter(())


@pytest.mark.parametrize(
    ("numbers", "ends"),
    [
        ([2], {"2": "ok"}),
        ([3], {"3": "fail"}),
        ([2, 4], {"2": "ok", "4": "ok"}),
        # One of them may have been stored before another was refused.
        ([2, 3], {"2": "info", "3": "info"}),
    ],
)
def test_only_what_is_proved_of_each_message_is_recorded(
    tmp_path: Path, numbers: list[int], ends: Mapping[str, str]
) -> None:
    """Confirmed if the call returned; failed if it proves that; unknown if one of several failed."""
    with Recorder(tmp_path / "client.jsonl") as recorder:
        publish(Failing(batch=len(numbers)), recorder, "client-0", numbers)
    operations = list(load(tmp_path))
    invoked = [operation.value for operation in operations if operation.type == "invoke"]
    assert invoked == [str(number) for number in numbers]
    assert {op.value: op.type for op in operations if op.type != "invoke"} == ends

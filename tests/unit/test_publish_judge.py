"""The judge of publishers under faults: what it calls wrong, and what it does not."""

from __future__ import annotations

import pytest

from tests.support.publish_chaos import judge
from unlost.core.outcome import Outcome

OK, FAILED, UNKNOWN = Outcome.OK, Outcome.FAILED, Outcome.UNKNOWN


def test_a_run_in_which_all_is_as_told_passes() -> None:
    """Ok and there (once or twice), failed and not there, unknown either way: nothing is wrong."""
    told = {"a": OK, "b": OK, "c": FAILED, "d": UNKNOWN, "e": UNKNOWN}
    assert judge(told, {"a": 1, "b": 2, "d": 1}, given=5) == []


@pytest.mark.parametrize(
    ("told", "there", "given", "says"),
    [
        ({"a": OK, "b": OK}, {"b": 1}, 2, "a: ok, but absent"),
        ({"a": OK, "b": FAILED}, {"a": 1, "b": 1}, 2, "b: failed, but there"),
        ({"a": OK}, {"a": 1, "z": 1}, 1, "z: there, but nobody published it"),
        ({"a": OK}, {"a": 1}, 2, "2 messages were given, and 1 have an outcome"),
        ({"a": UNKNOWN}, {"a": 1}, 1, "no message is ok: this run shows nothing"),
    ],
)
def test_each_wrong_is_named(told: dict[str, Outcome], there: dict[str, int], given: int, says: str) -> None:
    """A loss, a failure without proof, a stranger, a message without outcome and an idle run are named."""
    assert judge(told, there, given) == [says]

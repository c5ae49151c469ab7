"""What the docs say of the recorded runs is what the record says."""

from __future__ import annotations

import json
import re
from pathlib import Path

from unlost.chaos.evidence import read, total

EVIDENCE = Path(__file__).parents[2] / "docs" / "evidence"


def test_the_total_of_the_record_is_the_one_that_is_told() -> None:
    """A million confirmed messages and a thousand kills at least: nothing lost, nothing twice."""
    [told] = re.findall(r"```json\n(.+?)\n```", (EVIDENCE / "README.md").read_text())
    summed = total(read(EVIDENCE / "chaos.jsonl"))
    assert json.loads(told) == summed
    assert summed["verdict"] == "valid"
    assert (summed["lost"], summed["duplicate_effects"]) == (0, 0)
    assert summed["confirmed"] >= 1_000_000
    assert summed["kills"] >= 1_000

"""Histories written by hand, one operation a line."""

from __future__ import annotations

import json
from textwrap import dedent
from typing import Any, cast

from unlost.chaos.history import History, Op, OpType

SECOND = 1_000_000_000


def history(text: str) -> History:
    """Read lines of ``seconds process type f [value] [name=json ...]``; the order of the lines is kept."""
    lines = [line for line in dedent(text).splitlines() if line.strip()]
    return History(_op(index, line.split()) for index, line in enumerate(lines))


def _op(index: int, words: list[str]) -> Op:
    seconds, process, kind, f, *rest = words
    values = [word for word in rest if "=" not in word]
    extra: dict[str, Any] = {}
    for word in rest:
        name, equals, literal = word.partition("=")
        extra |= {name: json.loads(literal)} if equals else {}
    value = values[0] if values else None
    return Op(index, int(float(seconds) * SECOND), process, cast(OpType, kind), f, value, extra)

"""Which keys a binding takes, as RabbitMQ decides it."""

from __future__ import annotations

from collections.abc import Sequence


def topic_matches(pattern: str, key: str) -> bool:
    """Tell whether a topic pattern takes a routing key: ``*`` is one word, ``#`` is none or more."""
    return _matches(pattern.split("."), key.split("."))


def _matches(pattern: Sequence[str], words: Sequence[str]) -> bool:
    """Compare word by word; ``reached`` holds how many pattern words each prefix of the key has used."""
    reached = _after_hashes({0}, pattern)
    for word in words:
        moved = {at + 1 for at in reached if at < len(pattern) and pattern[at] in ("*", word)}
        stayed = {at for at in reached if at < len(pattern) and pattern[at] == "#"}
        reached = _after_hashes(moved | stayed, pattern)
    return len(pattern) in reached


def _after_hashes(reached: set[int], pattern: Sequence[str]) -> set[int]:
    """Add the places that are reached because a ``#`` may stand for nothing."""
    out = set(reached)
    for at in sorted(reached):
        while at < len(pattern) and pattern[at] == "#":
            at += 1  # noqa: PLW2901 - a walk along the pattern
            out.add(at)
    return out


def takes(exchange_type: str, binding_key: str, key: str) -> bool:
    """Tell whether a binding of an exchange of some type takes a key; of unknown types, perhaps: yes."""
    match exchange_type:
        case "direct":
            return binding_key == key
        case "topic":
            return topic_matches(binding_key, key)
        case _:
            return True

"""Letters grouped by what they have in common, in memory that does not grow with their number."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from unlost.deadletter.letter import DeadLetter

#: Ids kept of each group, for a look at single letters.
SAMPLES = 5

#: Beyond so many, what makes no group yet is counted together as one.
MOST_GROUPS = 5000

OTHERS = "others"

_FACETS: Mapping[str, Callable[[DeadLetter], str]] = {
    "task": lambda letter: letter.task,
    "exception": lambda letter: letter.exception_type,
    "reason": lambda letter: letter.reason,
    "fingerprint": lambda letter: letter.fingerprint,
    "origin": lambda letter: letter.origin,
    "version": lambda letter: letter.code_version,
    "day": lambda letter: letter.failed_at.date().isoformat() if letter.failed_at else "",
}

FACETS = tuple(_FACETS)

#: One cause, one group.
DEFAULT = ("task", "exception", "reason", "fingerprint")


@dataclass(kw_only=True)
class Group:
    """Letters that have their facets in common.

    Attributes:
        id: A short name, the same in every look.
        facets: What they have in common, by facet.
        letters: How many.
        loops: How many of them were sent back before and died of the same.
        oldest: The first known death.
        newest: The last known death.
        versions: Code versions that gave them up.
        example: What the first one's exception said.
        samples: Some ids.
    """

    id: str
    facets: Mapping[str, str]
    letters: int = 0
    loops: int = 0
    oldest: datetime | None = None
    newest: datetime | None = None
    versions: Counter[str] = field(default_factory=Counter)
    example: str = ""
    samples: list[str] = field(default_factory=list)

    def add(self, letter: DeadLetter, shown: Callable[[DeadLetter, str], str]) -> None:
        """Count a letter; ``shown`` makes its text fit to be shown."""
        self.letters += 1
        self.loops += letter.is_loop
        if letter.failed_at is not None:
            self.oldest = min(self.oldest or letter.failed_at, letter.failed_at)
            self.newest = max(self.newest or letter.failed_at, letter.failed_at)
        if letter.code_version and (letter.code_version in self.versions or len(self.versions) < SAMPLES):
            self.versions[letter.code_version] += 1
        self.example = self.example or shown(letter, letter.exception)[:200]
        if letter.id and len(self.samples) < SAMPLES:
            self.samples.append(letter.id)


def unknown_facets(by: Iterable[str]) -> list[str]:
    """Return those names that are no facet."""
    return sorted(set(by) - set(_FACETS))


def facets_of(letter: DeadLetter, by: Iterable[str] = DEFAULT) -> dict[str, str]:
    """Return a letter's facets; ``by`` names only such as there are."""
    return {name: _FACETS[name](letter) for name in by}


def group_id_of(letter: DeadLetter, by: Iterable[str] = DEFAULT) -> str:
    """Return the short name of the group that a letter is in."""
    return _id_of(facets_of(letter, by))


def _id_of(facets: Mapping[str, str]) -> str:
    text = "\0".join(f"{name}={value}" for name, value in facets.items())
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:10]


def group(
    letters: Iterable[DeadLetter],
    by: tuple[str, ...] = DEFAULT,
    shown: Callable[[DeadLetter, str], str] = lambda _letter, text: text,
) -> list[Group]:
    """Return the groups, the largest first; keeps counts and a few samples, no letters.

    Args:
        letters: Gone through once.
        by: What the letters of a group have in common, of :data:`FACETS`.
        shown: Makes an exception's text fit to be shown, :meth:`unlost.deadletter.redact.Redactor.text`.
    """
    groups: dict[tuple[str, ...], Group] = {}
    others = Group(id=OTHERS, facets={})
    for letter in letters:
        facets = facets_of(letter, by)
        key = tuple(facets.values())
        if key not in groups and len(groups) >= MOST_GROUPS:
            others.add(letter, shown)
            continue
        groups.setdefault(key, Group(id=_id_of(facets), facets=facets)).add(letter, shown)
    found = sorted(groups.values(), key=lambda each: -each.letters)
    return [*found, others] if others.letters else found

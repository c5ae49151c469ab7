"""What a rule is, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from unlost.topology.lint.world import World
from unlost.topology.objects import BrokerObject


class Severity(StrEnum):
    """How bad it is."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"

    @property
    def rank(self) -> int:
        """Return 0 for the worst."""
        return list(Severity).index(self)


Check = Callable[[World], Iterable[tuple[BrokerObject, str]]]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        id: Its name, for ``--ignore``.
        severity: How bad a finding is.
        title: What it looks for, in a few words.
        lost: What is lost, in one sentence.
        fix: What to do.
        check: Yields each offender and what is wrong with it.
        since: The first version of the broker that it is about; ``None`` for all.
    """

    id: str
    severity: Severity
    title: str
    lost: str
    fix: str
    check: Check
    since: tuple[int, int] | None = None

    def findings(self, world: World) -> Iterator[Finding]:
        """Yield what it finds."""
        if self.since is None or world.version >= self.since:
            for offender, wrong in self.check(world):
                yield Finding(self, offender.kind, offender.key, wrong, world.where(offender))


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule found.

    Attributes:
        rule: The rule.
        kind: Kind of the offender.
        key: Its key.
        wrong: What is wrong with it, in one sentence.
        where: ``file:line`` of its declaration; ``None`` if it came from no file.
    """

    rule: Rule
    kind: str
    key: str
    wrong: str
    where: str | None

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.rule.severity} {self.rule.id}: {self.kind} {self.key}: {self.wrong}"

"""Which letters are meant: by group, id, task, reason, age, or an expression over headers and payload."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from unlost.core.headers import PREFIX
from unlost.deadletter.group import DEFAULT, FACETS, group_id_of, unknown_facets
from unlost.deadletter.letter import DeadLetter
from unlost.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A letter is meant if it meets every condition that is set; with none set, all are meant.

    Attributes:
        by: What makes a group, of :data:`unlost.deadletter.FACETS`.
        groups: Ids of groups made by that, as ``show`` prints them.
        ids: Task ids or AMQP message ids.
        tasks: Names of tasks.
        reasons: Why they died.
        older_than: At least so long dead. A letter that does not say when it died is never meant by age.
        younger_than: At most so long dead.
        where: A JMESPath expression (https://jmespath.org) over ``headers``, ``payload`` (the decoded
            body), ``args``, ``kwargs``, ``task``, ``id``, ``reason``, ``exception_type``, ``exception``,
            ``redrives`` and ``attempt``; meant if it is true as JMESPath sees it. Our headers are also
            there under their short names: ``headers.queue`` is ``x-unlost-queue``.
    """

    by: tuple[str, ...] = DEFAULT
    groups: frozenset[str] = frozenset()
    ids: frozenset[str] = frozenset()
    tasks: frozenset[str] = frozenset()
    reasons: frozenset[str] = frozenset()
    older_than: timedelta | None = None
    younger_than: timedelta | None = None
    where: str | None = None

    def __post_init__(self) -> None:
        if unknown := unknown_facets(self.by):
            raise ConfigurationError(
                f"no facet {', '.join(unknown)}: letters are grouped by {', '.join(FACETS)}"
            )
        object.__setattr__(self, "_expression", _compiled(self.where) if self.where else None)

    @property
    def is_everything(self) -> bool:
        """Whether no condition is set."""
        return self == Selection()

    def matches(self, letter: DeadLetter, now: datetime) -> bool:
        """Return whether a letter is meant."""
        return (
            (not self.ids or letter.id in self.ids)
            and (not self.tasks or letter.task in self.tasks)
            and (not self.reasons or letter.reason in self.reasons)
            and self._is_of_age(letter, now)
            and (not self.groups or group_id_of(letter, self.by) in self.groups)
            and self._says(letter)
        )

    def _is_of_age(self, letter: DeadLetter, now: datetime) -> bool:
        if self.older_than is None and self.younger_than is None:
            return True
        if letter.failed_at is None:
            return False
        age = now - letter.failed_at
        return (self.older_than is None or age >= self.older_than) and (
            self.younger_than is None or age <= self.younger_than
        )

    def _says(self, letter: DeadLetter) -> bool:
        expression: Any = getattr(self, "_expression", None)
        if expression is None:
            return True
        from jmespath.exceptions import JMESPathError

        try:
            found = expression.search(document_of(letter))
        except JMESPathError:
            # A function was given what this letter does not have, such as the length of a missing field.
            return False
        # JMESPath's own idea of truth: 0 is true, an empty list is not.
        return found is not None and found is not False and found not in ("", [], {})

    def describe(self) -> str:
        """Return the conditions in words, for reports and the audit log."""
        parts = [
            f"{name}={','.join(sorted(values))}"
            for name, values in (
                ("group", self.groups),
                ("id", self.ids),
                ("task", self.tasks),
                ("reason", self.reasons),
            )
            if values
        ]
        if self.older_than is not None:
            parts.append(f"older than {self.older_than}")
        if self.younger_than is not None:
            parts.append(f"younger than {self.younger_than}")
        if self.where:
            parts.append(f"where {self.where}")
        return "; ".join(parts) or "all"


def document_of(letter: DeadLetter) -> dict[str, Any]:
    """Return what an expression sees of a letter."""
    args, kwargs = letter.arguments or ([], {})
    short = {name.removeprefix(PREFIX): value for name, value in letter.headers.items()}
    return {
        "headers": {**short, **letter.headers},
        "payload": letter.payload,
        "args": args,
        "kwargs": kwargs,
        "task": letter.task,
        "id": letter.id,
        "reason": letter.reason,
        "exception_type": letter.exception_type,
        "exception": letter.exception,
        "redrives": letter.redrives,
        "attempt": letter.attempt,
    }


def _compiled(where: str) -> Any:
    try:
        import jmespath
    except ModuleNotFoundError as exc:
        raise ConfigurationError(
            "an expression over letters needs jmespath, which is not installed: pip install 'unlost[dlq]'"
        ) from exc
    try:
        return jmespath.compile(where)
    except jmespath.exceptions.JMESPathError as exc:
        raise ConfigurationError(
            f"{where!r} is no JMESPath expression ({' '.join(str(exc).split())}); write for instance "
            "kwargs.amount > `100` && contains(exception, 'timeout')"
        ) from exc

"""What a loss-mode test has seen, as a file; and the page that all of them make."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.support.lossmodes.verdict import Outcome

MEANINGS = {
    Outcome.LOST: "gone, and nothing shows that it ever was",
    Outcome.REPEATED: "its effect happened more than once",
    Outcome.DIED: "the worker ended",
    Outcome.STUCK: "waits for something that does not come",
    Outcome.FINE: "executed once, or where an operator sees it",
}

HEAD = """# Loss modes

How a task gets lost, repeated or stuck with Celery on RabbitMQ, and what becomes of it here. Each line is a
test in [`tests/loss_modes/`](../tests/loss_modes) that runs the same scenario on plain Celery and on unlost,
with real workers and a real broker, and judges both by the same rule: the rows that the task bodies wrote,
the dead letters, and what is left in the queues. This page is made from what those tests saw
(Celery {celery}, RabbitMQ {rabbitmq}):

```sh
make loss-modes
```

{meanings}

Plain Celery has its defaults and the settings that are named. Where the column of unlost says **lost**,
**repeated**, **died** or **stuck**, the promise is not kept yet, and the test is expected to fail.

| mode | what goes wrong | plain Celery with | became | with unlost | shown by |
|---|---|---|---|---|---|
"""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One loss mode, as its test saw it.

    Attributes:
        mode: Its name.
        sentence: What goes wrong.
        plain: How plain Celery was set up.
        outcome: What became of the task there.
        unlost: What became of it under unlost.
        test: ``file::name``, below the folder of the tests.
        rabbitmq: The broker's version.
        celery: Celery's version.
    """

    mode: str
    sentence: str
    plain: str
    outcome: str
    unlost: str
    test: str
    rabbitmq: str
    celery: str

    def write(self, folder: Path) -> None:
        """Write the record into a folder, as a file of its own."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.mode}-{self.rabbitmq}.json").write_text(dump([self]))

    @property
    def release(self) -> tuple[int, ...]:
        """Return the broker's version as numbers."""
        return tuple(map(int, self.rabbitmq.split(".")))


def dump(records: Iterable[Record]) -> str:
    """Return records as JSON, in the order of their tests."""
    listed = [asdict(record) for record in sorted(records, key=lambda record: (record.test, record.mode))]
    return json.dumps(listed, indent=1, ensure_ascii=False) + "\n"


def load(path: Path) -> list[Record]:
    """Read records from a file, or from all files of a folder."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    return [Record(**each) for file in files for each in json.loads(file.read_text())]


def page(records: Iterable[Record]) -> str:
    """Return the page of the records, as Markdown."""
    records = list(records)
    head = HEAD.format(
        celery=_versions(record.celery for record in records),
        rabbitmq=_versions(record.rabbitmq for record in records),
        meanings="\n".join(f"- **{outcome}**: {meaning}" for outcome, meaning in MEANINGS.items()),
    )
    return head + "".join(_line(record) for record in records)


def _line(record: Record) -> str:
    file, _, name = record.test.partition("::")
    shown = f"[`{name}`](../tests/loss_modes/{file})"
    cells = (record.mode, record.sentence, record.plain, f"**{record.outcome}**", record.unlost, shown)
    return f"| {' | '.join(cells)} |\n"


def _versions(seen: Iterable[str]) -> str:
    return " and ".join(sorted(set(seen)))

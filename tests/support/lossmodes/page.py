"""``python -m tests.support.lossmodes.page FOLDER``: take what the tests recorded into the catalogue."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.lossmodes.record import dump, load, page

DOCS = Path(__file__).parents[3] / "docs"
RECORDS = DOCS / "loss-modes.json"
PAGE = DOCS / "loss-modes.md"


def take(folder: Path) -> None:
    """Take new records in, keep those of modes that were not run, and write the page anew.

    Of a mode that was run on several brokers the newest counts.
    """
    known = {record.mode: record for record in (load(RECORDS) if RECORDS.exists() else [])}
    known |= {record.mode: record for record in sorted(load(folder), key=lambda record: record.release)}
    RECORDS.write_text(dump(known.values()))
    PAGE.write_text(page(load(RECORDS)))


if __name__ == "__main__":
    take(Path(sys.argv[1]))

"""Sixteen processes race for the same messages while they are killed and stopped at every step."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.contenders import LIMITS, MESSAGES, dooms, effects, prepare, read_notes
from tests.support.stores import Servers, fresh_url
from unlost.core.ids import MessageId
from unlost.core.settlement import State
from unlost.idempotency.sql import SqlStore

PATIENCE = 120


@pytest.mark.timeout(2 * PATIENCE)
@pytest.mark.parametrize("kind", ["postgresql", "mariadb", "redis", "sqlite"])
def test_at_most_one_effect_and_no_message_stuck(kind: str, store_servers: Servers, tmp_path: Path) -> None:
    """Each message has one effect, whoever was killed or stopped where, and nobody waits for the stopped."""
    with ExitStack() as stack:
        url = fresh_url(kind, store_servers, tmp_path, stack)
        store = prepare(url)
        stack.callback(store.close)
        folder = tmp_path / "notes"
        folder.mkdir()

        # In a session of its own, so that a timeout takes the stopped ones along.
        subprocess.run(
            [sys.executable, "-m", "tests.support.contenders", url, str(folder), kind],
            check=True,
            timeout=PATIENCE,
        )

        notes = read_notes(folder)
        struck = Counter(more for step, _, more in notes if step == "struck")
        assert struck.total() == sum(doom is not None for doom in dooms(kind)), struck
        rows = [store.read(MessageId("race", str(number))) for number in range(MESSAGES)]
        assert [row.state for row in rows if row] == [State.DONE] * MESSAGES
        assert sum(row.lost for row in rows if row) < LIMITS.max_lost
        completed = Counter(message for step, message, _ in notes if step == "completed")
        assert max(completed.values()) == 1
        if isinstance(store, SqlStore):
            assert effects(store) == list(range(MESSAGES))

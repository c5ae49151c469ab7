"""Tasks of a Django project whose effects are rows of the ORM, in real workers that crash."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.db import connections

from tests.support import django_project
from tests.support.misbehaving_topology import TOPOLOGY
from tests.support.workers import SOON, bench
from unlost.testing.brokers import Vhost
from unlost.testing.waiting import wait_until

django_project.set_up()

from tests.support.django_shop.models import Effect  # noqa: E402 - models need settings

pytestmark = pytest.mark.one_broker

#: Where a process dies once.
POINTS = ("acquired", "body", "committing", "committed")
#: A message for each, one that nothing happens to, and one whose ``on_commit`` hook fails.
LABELS = ("none", "hook", *POINTS)


def test_rows_of_the_orm_are_written_once_whatever_dies(
    vhost: Vhost, tmp_path: Path, database_url: str
) -> None:
    """A crash before the commit leaves nothing, one after it changes nothing: rows, result, messages once."""
    with django_project.on_databases(default=database_url), connections["default"].schema_editor() as editor:
        editor.create_model(Effect)
    given = {"UNLOST_STORE": database_url, "CRASH_FOLDER": str(tmp_path), "UNLOST_LEASE": "60"}
    with bench(vhost, tmp_path, TOPOLOGY, "tests.support.django_worker", **given) as shop:
        shop.start()
        shop.call(f"for label in {LABELS}: m.pay.apply_async((label,), task_id=label)")
        wait_until(
            lambda: shop.states() == {"done": len(LABELS)},
            SOON,
            "all are done",
            why_not=lambda: shop.log()[-3000:],
        )
        effects = "select label, count(*) from django_shop_effect group by label"
        assert {tuple(row) for row in shop.rows(effects)} == {(label, 1) for label in LABELS}
        assert shop.rows("select count(*) from unlost_outbox")[0][0] == len(LABELS)
        results = shop.rows("select result, crashes from unlost_messages")
        assert {row.result for row in results} == {f'"{label}-done"' for label in LABELS}
        # Behind the commit the message is done: there is no lease left that could have crashed.
        assert sorted(row.crashes for row in results) == [0, 0, 0, 1, 1, 1]
        assert {path.name for path in tmp_path.glob("crashed-*")} == {f"crashed-{point}" for point in POINTS}

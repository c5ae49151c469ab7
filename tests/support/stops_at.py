"""The misbehaving app whose processes wait at a point of a delivery until a test lets them go on.

``TEST_STOPS_AT`` names the point and ``TEST_STOPS_IN`` a folder: a process that comes there leaves the file
``there``, and goes on when there is one called ``on``.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from tests.support.misbehaving import *  # noqa: F403 - all of the app
from tests.support.misbehaving import runtime
from unlost.core.ids import MessageId
from unlost.tasks.crashpoints import Point
from unlost.testing.waiting import wait_until

FOLDER = Path(os.environ["TEST_STOPS_IN"])


def _wait(point: Point, _message: MessageId) -> None:
    if point == os.environ["TEST_STOPS_AT"]:
        (FOLDER / "there").touch()
        wait_until((FOLDER / "on").exists, timedelta(minutes=2), "the test lets it go on")


runtime.points.observer = _wait

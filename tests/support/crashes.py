"""The points at which the crashing app's processes die."""

from __future__ import annotations

from unlost.tasks.crashpoints import OF_THE_PARENT, Point

#: In the middle of the body, behind its effect.
BODY = "body"

_OF_FAILURES = (Point.DECIDED, Point.PUBLISHED)

__all__ = ["BODY", "OF_THE_PARENT", "POINTS", "POINTS_WITHOUT_TRANSACTION"]

POINTS = (*(str(point) for point in Point if point not in _OF_FAILURES), BODY)
POINTS_WITHOUT_TRANSACTION = tuple(point for point in POINTS if point != Point.COMMITTING)

"""What can be known of an operation: it happened, it did not, or nobody can tell."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """The three values that publishers, stores, the CLI and the checkers use.

    ``FAILED`` needs proof. A confirm that timed out is ``UNKNOWN``, never ``FAILED``: five publishes
    that timed out during a memory alarm were all in the queue when it cleared.
    """

    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"

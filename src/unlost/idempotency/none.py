"""No ledger: what is known of a message is what its headers say, so its effect may happen more than once.

For tasks that may be repeated and whose cost counts. Attempts and the retry budget travel in the headers;
late acks, confirmed retries and letters are as ever, so nothing is lost. Nothing is absorbed: what is
delivered again runs again. Nobody counts crashes either, so the broker has to notice poison: each queue
must be declared ``without_store``, which gives it a delivery limit.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

from unlost.core import settlement
from unlost.core.headers import Failure
from unlost.core.ids import Generation, MessageId
from unlost.core.keys import Claim
from unlost.core.ports import Work
from unlost.core.settlement import Delivery, Limits, Row, Run, State
from unlost.errors import ConfigurationError

#: The URL that asks for no store.
NO_STORE = "none://"


class NoStore:
    """A ledger that remembers nothing: every delivery runs, and every decision stands as it was taken."""

    def __repr__(self) -> str:
        return "NoStore()"

    def acquire(self, delivery: Delivery, *, lease: timedelta, limits: Limits) -> Run:  # noqa: ARG002
        """Admit every delivery, at the generation that its headers claim."""
        started = delivery.budget_start_ms
        return Run(
            Row(
                state=State.LEASED,
                generation=delivery.generation,
                token=0,
                holder=delivery.holder,
                started_ms=int(time.time() * 1000) if started is None else started,
            )
        )

    def complete(
        self,
        message: MessageId,
        row: Row,
        result: str | None,
        quietly: Failure | None = None,
        claim: Claim | None = None,
    ) -> None:
        """Record nothing: the ack alone says that the message is done."""

    def cancel(self, message: MessageId, generation: Generation) -> bool:  # noqa: ARG002
        """Let the message be cancelled; its other copies will not hear of it."""
        return True

    def decide_waiting(self, message: MessageId, row: Row, *, due_ms: int, failure: Failure) -> Row:  # noqa: ARG002
        """Return the decision; a crash before its publish has the whole attempt repeated."""
        return settlement.decided_waiting(row, decision=secrets.token_hex(16), due_ms=due_ms, failure=failure)

    def decide_dead(self, message: MessageId, row: Row, *, failure: Failure) -> Row:  # noqa: ARG002
        """Return the decision; a crash before its publish has the whole attempt repeated."""
        return settlement.decided_dead(row, decision=secrets.token_hex(16), failure=failure)

    def mark_sent(self, message: MessageId, decision: str) -> bool:  # noqa: ARG002
        """Note nothing."""
        return True

    def renew(self, holders: Collection[str], lease: timedelta) -> None:
        """Renew nothing: there are no leases."""

    def hand_over(self, message: MessageId, row: Row, *, to: str, lease: timedelta, note: str | None) -> Row:  # noqa: ARG002
        """Refuse.

        Raises:
            ConfigurationError: Always: there are no leases.
        """
        raise _needs_a_store(f"{message}: a lease")

    def end_crashed(self, holder: str) -> bool:  # noqa: ARG002
        """Count nothing: the broker counts the delivery."""
        return False

    def release(self, holder: str) -> bool:  # noqa: ARG002
        """End nothing: there are no leases."""
        return False

    def unit_of_work(
        self,
        message: MessageId,
        row: Row,  # noqa: ARG002
        encode: Any,  # noqa: ARG002
        claim: Claim | None = None,  # noqa: ARG002
        within: Any = None,  # noqa: ARG002
    ) -> AbstractContextManager[Work]:
        """Refuse.

        Raises:
            ConfigurationError: Always.
        """
        raise _needs_a_store(f"{message.task}: unit_of_work()")

    def read(self, message: MessageId) -> Row | None:  # noqa: ARG002
        """Return nothing: no message has a row."""
        return None

    def read_many(self, messages: Collection[MessageId]) -> Mapping[MessageId, Row]:  # noqa: ARG002
        """Return nothing: no message has a row."""
        return {}

    def find(self, text: str, most: int = 100) -> list[tuple[str, Row]]:  # noqa: ARG002
        """Return nothing: no message has a row."""
        return []

    def count_purgeable(self, older_than: timedelta) -> int:  # noqa: ARG002
        """Return 0: there are no rows."""
        return 0

    def purge(self, older_than: timedelta) -> int:  # noqa: ARG002
        """Return 0: there are no rows."""
        return 0

    def create_schema(self) -> None:
        """Do nothing: nothing is kept."""

    def close(self) -> None:
        """Do nothing: nothing is open."""


def _needs_a_store(what: str) -> ConfigurationError:
    return ConfigurationError(f"{what} needs a store, and the app has none: install(app, store=...)")

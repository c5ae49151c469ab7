"""The ledger's transitions as pure functions: what a delivery may do, given the row of its message.

A failure settles in the order *decide* (one compare-and-set, which ends attempt and lease) → *publish*
the successor or the letter, confirmed → *mark sent* → *ack*. A crash between any two leaves a row from
which the next delivery goes on:

===========================  ======================  ==============================================
row                          delivery                admission
===========================  ======================  ==============================================
absent                       any                     run it
done                         any                     repeat only the dispatch of its successors
cancelled                    any                     superseded: ack
leased, by this delivery     any                     run it: the answer to its acquire was lost
leased, holder alive         any                     held: back to the delay path, uncounted
leased, expired or dead      any                     take over, at a random time, so that those that
                                                     were lost together separate: run as the later of
                                                     row and delivery; too many crashes or
                                                     takeovers, and no newer redrive: decide dead
waiting(G)                   older than G, sent      superseded: ack
waiting(G)                   older than G, not sent  repeat the publish of G, never the body
waiting(G)                   G or later              run it
dead(G)                      same redrive, sent      superseded: ack
dead(G)                      same redrive, not sent  repeat the publish of the letter
dead(G)                      newer redrive           run it, crashes and takeovers reset
===========================  ======================  ==============================================

The order is model-checked: without it one crash is enough to run a body beyond its budget or to leave
a dead letter of a task that succeeded.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import NamedTuple

from unlost.core.headers import Failure
from unlost.core.ids import Generation, MessageId

#: Why a message without a row that is older than the store's memory is dead.
TOO_OLD = "too-old"


class State(StrEnum):
    """Where a message stands."""

    LEASED = "leased"
    WAITING = "waiting"
    DEAD = "dead"
    DONE = "done"
    CANCELLED = "cancelled"


#: The longest time over which takeovers are spread.
MOST_SPREAD = timedelta(minutes=1)

#: From these no delivery goes on by itself; only such rows are ever purged.
ENDED = (State.DONE, State.DEAD, State.CANCELLED)


class Row(NamedTuple):
    """One message in the ledger.

    ``token`` is the fencing token: it grows with every grant and every decision, so that a write of a
    holder that was taken over finds another number and fails. ``expires`` is in seconds of the store's
    clock; ``holder`` is ``None`` once the lease was ended.
    """

    state: State
    generation: Generation
    token: int
    holder: str | None = None
    expires: float = 0.0
    decision: str | None = None
    sent: bool = False
    crashes: int = 0
    lost: int = 0
    due_ms: int | None = None
    started_ms: int = 0
    result: str | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What a worker brings: a message, the generation it claims, and a holder made for it.

    ``budget_start_ms`` is when the message says that its retry budget began; the ledger knows better.
    """

    message: MessageId
    generation: Generation
    holder: str
    budget_start_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """How often a message may take its process down before it is poison."""

    max_crashes: int = 3
    max_lost: int = 20


@dataclass(frozen=True, slots=True)
class Run:
    """Run the body under this lease (``row`` is to be written).

    ``is_takeover`` says that the lease was another's, who did not end it.
    """

    row: Row
    is_takeover: bool = False


@dataclass(frozen=True, slots=True)
class AlreadyDone:
    """The effect is there: only dispatch the successors, from the recorded result."""

    row: Row


@dataclass(frozen=True, slots=True)
class Resend:
    """Publish the row's decision, then mark it sent; no body. ``write`` when the row is new."""

    row: Row
    write: bool = False


@dataclass(frozen=True, slots=True)
class Superseded:
    """Another copy carries the message on: ack this one."""

    row: Row


@dataclass(frozen=True, slots=True)
class Held:
    """Somebody alive holds the message: come back after ``remaining`` seconds or later."""

    remaining: float


Admission = Run | AlreadyDone | Resend | Superseded | Held


def admit(
    row: Row | None,
    delivery: Delivery,
    *,
    now: float,
    now_ms: int,
    lease: timedelta,
    holder_gone: bool,
    limits: Limits,
    decision: str,
) -> Admission:
    """Decide what a delivery may do.

    Args:
        row: The message's row, or ``None``.
        delivery: What arrived.
        now: The store's clock, seconds.
        now_ms: Wall clock, epoch milliseconds; only recorded.
        lease: How long a granted lease lasts without renewal.
        holder_gone: Whether the row's holder is known to be dead.
        limits: When a message is poison.
        decision: An id for the decision, should one be taken here.
    """
    if row is None:
        return Run(_granted(None, delivery, delivery.generation, now, now_ms, lease))
    if row.state is State.DONE:
        return AlreadyDone(row)
    if row.state is State.CANCELLED:
        return Superseded(row)
    found = row
    if row.state is State.LEASED:
        if row.holder == delivery.holder:
            # A holder is made for one delivery: this is the same acquire again, whose answer was lost.
            return Run(row)
        if row.holder is not None and not holder_gone and row.expires > now:
            return Held(row.expires - now)
        row = _ended(row)
        if _is_poison(row, delivery.generation, limits):
            return Resend(_poison(row, delivery, decision, now_ms), write=True)
    elif _is_decided(row, delivery.generation):
        return Superseded(row) if row.sent else Resend(row)
    generation = max(row.generation, delivery.generation)
    return Run(_granted(row, delivery, generation, now, now_ms, lease), is_takeover=row.lost > found.lost)


def spread_of(row: Row) -> timedelta:
    """Return within which time a message that was taken over shall start again, at random.

    Those that were lost together are not to be together again: then only the killer meets its end anew.
    """
    return min(timedelta(seconds=2 ** min(row.lost, 6)), MOST_SPREAD)


def _is_decided(row: Row, generation: Generation) -> bool:
    """Whether the row's decision already covers this generation."""
    if row.state is State.DEAD:
        return generation.redrives <= row.generation.redrives
    return generation < row.generation


def _is_poison(row: Row, generation: Generation, limits: Limits) -> bool:
    """Whether the message has taken down enough processes; an operator's redrive starts afresh."""
    if generation.redrives > row.generation.redrives:
        return False
    return row.crashes >= limits.max_crashes or row.lost >= limits.max_lost


def _ended(row: Row) -> Row:
    """End a lease whose holder did not end it: that is a takeover, counted apart from crashes."""
    return row if row.holder is None else row._replace(holder=None, expires=0.0, lost=row.lost + 1)


def _granted(
    row: Row | None, delivery: Delivery, generation: Generation, now: float, now_ms: int, lease: timedelta
) -> Row:
    same_redrive = row is not None and row.generation.redrives == generation.redrives
    return Row(
        state=State.LEASED,
        generation=generation,
        token=(row.token if row else 0) + 1,
        holder=delivery.holder,
        expires=now + lease.total_seconds(),
        crashes=row.crashes if row and same_redrive else 0,
        lost=row.lost if row and same_redrive else 0,
        started_ms=row.started_ms if row and same_redrive else now_ms,
        # It may have run before the store forgot it; sending its letter back is no proof that it has not.
        failure=row.failure if row and row.failure and row.failure.reason == TOO_OLD else None,
    )


def _poison(row: Row, delivery: Delivery, decision: str, now_ms: int) -> Row:
    why = f"{row.crashes} crashes, {row.lost} takeovers"
    return row._replace(
        state=State.DEAD,
        generation=max(row.generation, delivery.generation),
        token=row.token + 1,
        decision=decision,
        sent=False,
        failure=Failure(reason="poison", exception=why, failed_at_ms=now_ms),
    )


def decided_waiting(row: Row, *, decision: str, due_ms: int, failure: Failure) -> Row:
    """Return the row after a retryable failure: the next attempt, not before ``due_ms``."""
    return _after(row, State.WAITING, decision)._replace(
        generation=row.generation.next_attempt(),
        due_ms=due_ms,
        failure=failure,
    )


def decided_dead(row: Row, *, decision: str, failure: Failure) -> Row:
    """Return the row after a permanent failure or a spent budget."""
    return _after(row, State.DEAD, decision)._replace(failure=failure)


def done(row: Row, *, result: str | None, quietly: Failure | None = None) -> Row:
    """Return the row after success; what belonged to the way there goes, the budget's start stays."""
    return row._replace(
        state=State.DONE,
        holder=None,
        expires=0.0,
        token=row.token + 1,
        result=result,
        failure=quietly,
    )


def _after(row: Row, state: State, decision: str) -> Row:
    return row._replace(
        state=state, holder=None, expires=0.0, token=row.token + 1, decision=decision, sent=False
    )


def crashed(row: Row) -> Row:
    """Return the row after its child was seen dead: the crash counted, the lease ended at once."""
    return row._replace(holder=None, expires=0.0, crashes=row.crashes + 1)


def cancelled(row: Row | None, generation: Generation) -> Row:
    """Return the row after an operator revoked the message: terminal for all copies, fenced like a grant."""
    if row is None:
        return Row(state=State.CANCELLED, generation=generation, token=1)
    return row._replace(state=State.CANCELLED, holder=None, expires=0.0, token=row.token + 1)


def handed_over(row: Row, *, to: str, note: str | None) -> Row:
    """Return the row after its holder gave the lease to another, who is fenced from then on."""
    return row._replace(holder=to, token=row.token + 1, result=note)


def released(row: Row) -> Row:
    """Return the row after its holder was stopped on purpose: the lease ended, nothing counted."""
    return row._replace(holder=None, expires=0.0)

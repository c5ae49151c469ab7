"""What is to become of a letter, decided without touching anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from unlost.core import headers as h
from unlost.core.clock import epoch_ms
from unlost.core.ids import Generation, amqp_message_id
from unlost.core.message import Outgoing
from unlost.core.signing import BAD_SIGNATURE, EXPIRED_SIGNATURE, UNSIGNED, Flaw, Seal
from unlost.deadletter.letter import DeadLetter
from unlost.deadletter.select import Selection

#: Properties that must not travel: the first would let the broker drop the message, the second belongs to
#: the connection of whoever published it first.
_NOT_KEPT = ("expiration", "user_id", "cluster_id")


class Verdict(StrEnum):
    """What happens to a letter."""

    #: It is sent on and then acked.
    SEND = "send"
    #: Another letter of the same message and redrive number is sent in this run: acked with it.
    TWIN = "twin"
    #: The journal says that it was sent already: only acked.
    SENT_BEFORE = "sent-before"
    #: It is not meant.
    NOT_SELECTED = "not-selected"
    #: Its message is done or cancelled: sending it back would do nothing.
    DONE = "done"
    #: The work of its idempotency key was done by another message.
    KEY_DONE = "key-done"
    CANCELLED = "cancelled"
    #: It was sent back as often as it may be.
    LIMIT = "limit"
    #: It was sent back in this very run and died again.
    CAME_BACK = "came-back"
    #: Nobody knows where it came from: say ``to``.
    NO_ORIGIN = "no-origin"
    #: The application does not have this task: it would only die again.
    UNKNOWN_TASK = "unknown-task"
    #: The edited payload is not what the task takes.
    INVALID = "invalid"
    #: Nobody has signed it: sending it back, signed, would make a forged message a genuine one.
    UNSIGNED = UNSIGNED
    #: Its signature is not that of a key at hand.
    BAD_SIGNATURE = BAD_SIGNATURE
    #: It was seen too late to be believed.
    EXPIRED_SIGNATURE = EXPIRED_SIGNATURE
    #: It is signed, and there are no keys: what is sent back needs a signature of its own.
    NO_KEYS = "no-keys"


#: Verdicts that take the letter out of the queue.
LEAVES = frozenset({Verdict.SEND, Verdict.TWIN, Verdict.SENT_BEFORE})


class Ends(Protocol):
    """What the ledger knows of letters; :class:`unlost.deadletter.known.Known`."""

    def end_of(self, letter: DeadLetter) -> Verdict | None:
        """Return how its message came to an end since, if it did."""


@dataclass(frozen=True, kw_only=True)
class Redrive:
    """How letters are sent back.

    Attributes:
        selection: Which.
        to: To this queue instead of the one each died in.
        max_redrives: A letter that was sent back so often stays.
        run_again: Also what is expired, or past the store's retention, is to run.
        edit: Makes a new ``(args, kwargs)`` of a letter's; raises ``ValueError`` if the task would not
            take it.
        tasks: The names that the application has; ``None`` if they are not known.
        seal: Verifies letters, and signs what is sent back; ``None`` if there are no keys.
        trust: Send, and sign, also what cannot be verified: the operator vouches for it.
    """

    selection: Selection = field(default_factory=Selection)
    to: str | None = None
    max_redrives: int = 3
    run_again: bool = False
    edit: Callable[[DeadLetter], bytes] | None = None
    tasks: Collection[str] | None = None
    seal: Seal | None = None
    trust: bool = False

    def changed(self, letter: DeadLetter) -> DeadLetter:
        """Return the letter with the body that would be sent; as it is, if its edit is refused."""
        if self.edit is None:
            return letter
        with suppress(ValueError):
            return replace(letter, body=self.edit(letter))
        return letter


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict; with ``SEND`` what to publish, and else perhaps why."""

    verdict: Verdict
    outgoing: Outgoing | None = None
    why: str = ""


class Seen(Protocol):
    """What a journal knows."""

    def knows(self, identity: str | None, redrives: int) -> bool:
        """Whether a letter of this message and redrive number is safe elsewhere."""


def decide(letter: DeadLetter, plan: Redrive, seen: Seen, ends: Ends | None, now: datetime) -> Decision:
    """Decide what becomes of a letter; twins within a batch are the caller's to find."""
    if seen.knows(letter.identity, letter.redrives):
        # Whether it is meant or not: it was, when it was sent, and it must not be sent twice.
        return Decision(Verdict.SENT_BEFORE)
    if letter.redrives and seen.knows(letter.identity, letter.redrives - 1):
        return Decision(Verdict.CAME_BACK)
    if not plan.selection.matches(letter, now):
        return Decision(Verdict.NOT_SELECTED)
    if letter.redrives >= plan.max_redrives:
        return Decision(Verdict.LIMIT, why=f"sent back {letter.redrives} times")
    target = plan.to or letter.origin
    if not target:
        return Decision(Verdict.NO_ORIGIN)
    if plan.tasks is not None and letter.task and letter.task not in plan.tasks:
        return Decision(Verdict.UNKNOWN_TASK, why=letter.task)
    if ends is not None and (ended := ends.end_of(letter)) is not None:
        return Decision(ended)
    if (refused := _distrusted(letter, plan)) is not None:
        return refused
    try:
        body = plan.edit(letter) if plan.edit else letter.body
    except ValueError as exc:
        return Decision(Verdict.INVALID, why=str(exc))
    outgoing = _redriven(letter, target, body, plan.run_again, now)
    if plan.seal is not None and letter.message is not None:
        outgoing = plan.seal.sign(outgoing, now)
    return Decision(Verdict.SEND, outgoing)


def _distrusted(letter: DeadLetter, plan: Redrive) -> Decision | None:
    """Return why a task message is not sent back for want of a good signature, if so.

    What is no task message was never signed by us, and no worker of ours would run it.
    """
    if plan.trust or letter.message is None:
        return None
    if (flaw := _flaw_of(letter, plan.seal)) is not None:
        return Decision(
            Verdict(flaw.reason), why=f"{flaw.text}; look at it, and if you vouch for it: --trust"
        )
    if letter.reason == EXPIRED_SIGNATURE and not plan.run_again:
        return Decision(
            Verdict.EXPIRED_SIGNATURE, why="it came too late to be believed; to run it: --run-again"
        )
    return None


def _flaw_of(letter: DeadLetter, seal: Seal | None) -> Flaw | None:
    if seal is not None:
        flaw = seal.flaw_of(letter.headers, letter.properties, letter.body)
        # A worker that did not believe it, or lacked the key, has left it the signature that it came with.
        as_it_came = h.before_death(letter.headers)
        return flaw and seal.flaw_of(as_it_came, letter.properties, letter.body)
    if h.SIGNATURE in letter.headers:
        return Flaw(Verdict.NO_KEYS, "it is signed: give the keys (--app or UNLOST_SIGNING)")
    if letter.reason in (UNSIGNED, BAD_SIGNATURE):
        return Flaw(letter.reason, "a worker has refused it")
    return None


def _redriven(letter: DeadLetter, target: str, body: bytes, run_again: bool, now: datetime) -> Outgoing:
    """Return the message to publish: straight to its queue, so that nobody else bound gets a copy."""
    headers = h.redriven(letter.headers, at_ms=epoch_ms(now), failure=letter.fingerprint, run_again=run_again)
    properties = _kept(letter.properties)
    if body != letter.body:
        # They were the old payload's.
        for name in (h.KEY, h.FINGERPRINT):
            headers.pop(name, None)
    if letter.message is not None:
        generation = Generation(letter.redrives + 1, 1)
        properties["message_id"] = amqp_message_id(letter.message, generation)
        headers[h.QUEUE] = target
    else:
        # What is no task message gets none of a task's numbers.
        headers.pop("retries", None)
        headers.pop(h.ATTEMPT, None)
    return Outgoing(exchange="", routing_key=target, body=body, headers=headers, properties=properties)


def moved(letter: DeadLetter, target: str, notes: dict[str, Any]) -> Outgoing:
    """Return a letter as it is, for another queue of letters, with notes added to its headers."""
    headers = {
        name: value
        for name, value in letter.headers.items()
        if name not in ("x-delivery-count", "x-acquired-count")
    }
    return Outgoing(
        exchange="",
        routing_key=target,
        body=letter.body,
        headers={**headers, **notes},
        properties=_kept(letter.properties),
    )


def _kept(properties: Any) -> dict[str, Any]:
    kept = {name: value for name, value in properties.items() if name not in _NOT_KEPT}
    return {**kept, "delivery_mode": 2}


def edited(letter: DeadLetter, args: list[Any], kwargs: dict[str, Any]) -> bytes:
    """Return the body of a task message with other arguments; links and the like stay as they are.

    Raises:
        ValueError: The letter is no task message in JSON.
    """
    match letter.payload:
        case [list(), dict(), *rest]:
            return json.dumps([args, kwargs, *rest]).encode()
        case _:
            raise ValueError("only a JSON task message can be edited: its body is not [args, kwargs, embed]")

"""What of signed, forged and foreign letters is sent back, and how it is signed then."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from tests.support.letters import LETTERS, TASK, KnowsNothing, a_letter, as_letter
from tests.support.signing import SEAL, signing
from unlost.core import headers as h
from unlost.core.message import Outgoing
from unlost.core.signing import Seal
from unlost.deadletter import Redrive, edited
from unlost.deadletter.disposition import Decision, Verdict, decide, moved
from unlost.deadletter.letter import DeadLetter

NOW = datetime(2026, 3, 1, tzinfo=UTC)
STRANGER = Seal(keys={"k2": b"x" * 32}, sign_with="k2")
LAX = signing(require=False).seal()


def decided(letter: DeadLetter, **plan: Any) -> Decision:
    """Return what becomes of a letter; with keys unless the plan has none."""
    return decide(letter, Redrive(**{"seal": SEAL, **plan}), KnowsNothing(), None, NOW)


def signed_letter(**options: Any) -> DeadLetter:
    """Make the letter of a worker that has believed the message."""
    return as_letter(SEAL.sign(a_letter("m1", **options), NOW))


def refused_letter(seal: Seal, reason: str) -> DeadLetter:
    """Make the letter of a worker that has not: with the signature that the message came with."""
    message = as_letter(a_letter("m1", failure={"reason": reason}))
    as_it_came = Outgoing(
        exchange="",
        routing_key="",
        body=message.body,
        headers=h.before_death(message.headers),
        properties=message.properties,
    )
    return replace(message, headers={**message.headers, **h.seals(seal.sign(as_it_came, NOW).headers)})


def is_good(decision: Decision, seal: Seal = SEAL) -> bool:
    """Whether what is sent bears a good signature."""
    sent = decision.outgoing
    return sent is not None and seal.flaw_of(sent.headers, sent.properties, sent.raw_body) is None


def test_a_letter_of_a_message_that_was_believed_is_sent_back_signed() -> None:
    """It verifies, and what is sent has a signature of its own, also with other arguments."""
    assert is_good(decided(signed_letter()))
    edit = decided(signed_letter(), edit=lambda letter: edited(letter, [], {"order": 9}))
    assert is_good(edit)
    assert edit.outgoing is not None
    assert json.loads(edit.outgoing.raw_body)[1] == {"order": 9}


def test_a_forged_letter_stays_unless_somebody_vouches_for_it() -> None:
    """A redrive does not sign what it cannot verify; the reason names the way out."""
    forged = refused_letter(STRANGER, "bad-signature")
    decision = decided(forged)
    assert (decision.verdict, decision.outgoing) == (Verdict.BAD_SIGNATURE, None)
    assert "--trust" in decision.why
    altered = replace(signed_letter(), body=b'[[], {"order": 2}, {}]')
    assert decided(altered).verdict is Verdict.BAD_SIGNATURE
    assert is_good(decided(forged, trust=True))
    # Not even where its reason is said to be another one.
    lying = replace(forged, headers={**forged.headers, h.DEATH_REASON: "permanent"})
    assert decided(lying).verdict is Verdict.BAD_SIGNATURE


def test_a_genuine_letter_of_a_worker_without_the_key_is_sent_back() -> None:
    """A key that was missing in the workers condemns nothing for good: with it, the letter verifies."""
    both = Seal(keys={**SEAL.keys, **STRANGER.keys}, sign_with="k1")
    assert is_good(decided(refused_letter(STRANGER, "bad-signature"), seal=both))


def test_an_unsigned_letter_stays_where_signatures_are_required() -> None:
    """A letter of plain Celery, or from before there were signatures, needs somebody's word."""
    assert decided(as_letter(a_letter("m1"))).verdict is Verdict.UNSIGNED
    assert is_good(decided(as_letter(a_letter("m1")), trust=True))
    assert is_good(decided(as_letter(a_letter("m1")), seal=LAX))


def test_what_came_too_late_is_run_on_the_operators_word() -> None:
    """An expired signature is sent back, and signed now, with ``run_again`` only."""
    late = signed_letter(failure={"reason": "expired-signature"})
    assert decided(late).verdict is Verdict.EXPIRED_SIGNATURE
    assert is_good(decided(late, run_again=True))


def test_without_keys_what_is_signed_stays() -> None:
    """Sent back it would be a letter again; vouched for, it goes without a signature."""
    decision = decided(signed_letter(), seal=None)
    assert decision.verdict is Verdict.NO_KEYS
    assert "UNLOST_SIGNING" in decision.why
    vouched = decided(signed_letter(), seal=None, trust=True).outgoing
    assert vouched is not None
    assert h.seals(vouched.headers) == {}
    assert decided(as_letter(a_letter("m1")), seal=None).verdict is Verdict.SEND
    assert decided(refused_letter(STRANGER, "unsigned"), seal=None).verdict is Verdict.NO_KEYS
    unsigned = as_letter(a_letter("m1", failure={"reason": "unsigned"}))
    assert decided(unsigned, seal=None).verdict is Verdict.UNSIGNED


def test_what_is_no_task_is_neither_verified_nor_signed() -> None:
    """Messages of other programs go back as they were."""
    foreign = DeadLetter(queue=LETTERS, body=b"x", headers={h.QUEUE: "elsewhere"})
    sent = decided(foreign).outgoing
    assert sent is not None
    assert h.seals(sent.headers) == {}


def test_a_parked_letter_keeps_its_signature() -> None:
    """An operator's notes are not covered: parking needs no key, and what was parked still verifies."""
    parked = moved(signed_letter(task=TASK), "shop.parked", {"x-unlost-parked-reason": "later"})
    assert is_good(decided(as_letter(parked)))

"""Signatures: what they cover, what they leave to the way, whose age counts, and that secrets stay secret."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import amqp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from unlost import config
from unlost.broker.frames import encode_properties
from unlost.config import Signing
from unlost.core import headers as h
from unlost.core.clock import epoch_ms
from unlost.core.headers import Failure
from unlost.core.ids import Generation
from unlost.core.message import Outgoing
from unlost.core.signing import BAD_SIGNATURE, UNSIGNED, Seal
from unlost.errors import ConfigurationError

NOW = datetime(2026, 3, 1, tzinfo=UTC)
OLD, NEW = "o" * 32, "n" * 32

MESSAGE = Outgoing(
    exchange="shop",
    routing_key="shop.work",
    body='[[1], {"name": "ö"}, {}]',
    headers={
        "task": "shop.charge",
        "id": "m1",
        "retries": 0,
        "timelimit": [None, 30],
        "x-tenant": "acme",
        h.QUEUE: "shop.work",
        h.ATTEMPT: 1,
        h.REDRIVES: 0,
    },
    properties={"content_type": "application/json", "content_encoding": "utf-8", "priority": 0},
)


def ring(sign_with: str = "new", **options: Any) -> Seal:
    """Make what signs and verifies with two keys."""
    return Signing(keys={"old": OLD, "new": NEW}, sign_with=sign_with, **options).seal()


SEAL = ring()
SIGNED = SEAL.sign(MESSAGE, NOW)


def arrived(message: Outgoing) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Return headers, properties and body as a consumer gets them."""
    received = amqp.Message()
    received._load_properties(amqp.spec.Basic.CLASS_ID, encode_properties(message), 0)
    properties = dict(received.properties)
    return properties.pop("application_headers"), properties, message.raw_body


def reason(message: Outgoing, seal: Seal = SEAL) -> str | None:
    """Return why a message that has arrived is not believed."""
    flaw = seal.flaw_of(*arrived(message))
    return flaw.reason if flaw else None


def with_headers(message: Outgoing, **changes: Any) -> Outgoing:
    """Return the message with other headers, as somebody without a key can make them."""
    return replace(message, headers={**message.headers, **changes})


def test_a_signed_message_is_believed() -> None:
    """What was signed and has travelled verifies, and nothing but the signature was added to it."""
    assert reason(SIGNED) is None
    assert h.unsealed(SIGNED.headers) == MESSAGE.headers
    assert (SIGNED.body, SIGNED.properties) == (MESSAGE.body, MESSAGE.properties)


FORGED: Mapping[str, Outgoing] = {
    "body": replace(SIGNED, body='[[2], {"name": "ö"}, {}]'),
    "task": with_headers(SIGNED, task="shop.refund"),
    "id": with_headers(SIGNED, id="m2"),
    "nesting": with_headers(SIGNED, replaced_task_nesting=1),
    "attempt": with_headers(SIGNED, **{h.ATTEMPT: 2}),
    "redrives": with_headers(SIGNED, **{h.REDRIVES: 1}),
    "death": with_headers(SIGNED, **{h.DEATH_REASON: "permanent"}),
    "run again": with_headers(SIGNED, **{h.RUN_AGAIN: 1}),
    "key": with_headers(SIGNED, **{h.KEY: "another"}),
    "due": with_headers(SIGNED, **{h.DUE: 1}),
    "first published": with_headers(SIGNED, **{h.FIRST_PUBLISHED: 1}),
    "compression": with_headers(SIGNED, compression="gzip"),
    "time limit": with_headers(SIGNED, timelimit=[None, 31]),
    "tenant": with_headers(SIGNED, **{"x-tenant": "other"}),
    "another header": with_headers(SIGNED, more=1),
    "signed at": with_headers(SIGNED, **{h.SIGNED_AT: epoch_ms(NOW) + 1}),
    "key id": with_headers(SIGNED, **{h.KEY_ID: "old"}),
    "unknown key": with_headers(SIGNED, **{h.KEY_ID: "none"}),
    "signature": with_headers(SIGNED, **{h.SIGNATURE: "0" * 64}),
    "no text": with_headers(SIGNED, **{h.SIGNATURE: 7}),
    "odd text": with_headers(SIGNED, **{h.SIGNATURE: "\udcff"}),
    "content type": replace(SIGNED, properties={**SIGNED.properties, "content_type": "text/plain"}),
    "reply to": replace(SIGNED, properties={**SIGNED.properties, "reply_to": "mine"}),
    "a header less": replace(
        SIGNED, headers={name: value for name, value in SIGNED.headers.items() if name != "timelimit"}
    ),
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=list(FORGED))
def test_whatever_decides_something_is_covered(forged: Outgoing) -> None:
    """A change of body, of any header, or of how the body is read, is noticed."""
    assert reason(forged) == BAD_SIGNATURE


def test_what_changes_on_the_way_is_not_covered() -> None:
    """Broker, plugins, shovels and an operator who parks a letter add headers, and the place changes."""
    added = {"x-death": [{"count": 1}], "x-delivery-count": 3, "x-opt-x": 1, "timestamp_in_ms": 5}
    shovelled = {"x-shovelled": [{"src": "a"}], "x-shovelled-timestamp": 1, "x-unlost-parked-by": "me"}
    moved = with_headers(SIGNED, **added, **shovelled).to("elsewhere", "q:other")
    assert reason(replace(moved, properties={**moved.properties, "priority": 9, "delivery_mode": 2})) is None


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).map(lambda name: f"u-{name}"),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-(2**63), 2**63 - 1)
            | st.floats(allow_nan=False)
            | st.text(st.characters(codec="utf-8"), max_size=20)
            | st.binary(max_size=20)
            | st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1))
            | st.decimals(-1000, 1000, places=3),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(st.characters(codec="ascii"), max_size=5), inner, max_size=3)
            ),
            max_leaves=5,
        ),
        max_size=4,
    )
)
def test_any_header_that_can_travel_keeps_its_signature(headers: dict[str, Any]) -> None:
    """AMQP changes the form of some values; their signature stays the same."""
    assert reason(SEAL.sign(with_headers(MESSAGE, **headers), NOW)) is None


def test_every_key_verifies_and_one_signs() -> None:
    """While keys change, what was signed with the old one is believed; a key that is gone is named."""
    assert SIGNED.headers[h.KEY_ID] == "new"
    assert reason(ring("old").sign(MESSAGE, NOW)) is None
    flaw = Signing(keys={"old": OLD}).seal().flaw_of(*arrived(SIGNED))
    assert flaw is not None
    assert (flaw.reason, flaw.text) == (BAD_SIGNATURE, "it names key 'new', and this process has old")


def test_a_message_without_a_signature_is_refused_if_one_is_required() -> None:
    """By default it is; otherwise it is believed, and a wrong signature still is not."""
    lax = ring(require=False)
    assert (reason(MESSAGE), reason(MESSAGE, lax)) == (UNSIGNED, None)
    assert reason(FORGED["body"], lax) == BAD_SIGNATURE


def test_age_counts_from_signing_or_from_when_it_is_due() -> None:
    """A delay of a year does not age a message; the leeway is added; without a bound nothing is old."""
    seal = ring(max_age=timedelta(hours=1), leeway=timedelta(minutes=1))
    signed, due = seal.sign(MESSAGE, NOW), NOW + timedelta(days=365)
    delayed = seal.sign(with_headers(MESSAGE, **{h.DUE: epoch_ms(due)}), NOW)
    just, late = timedelta(minutes=61), timedelta(minutes=61, milliseconds=1)
    assert [seal.is_expired(signed.headers, NOW + after) for after in (just, late)] == [False, True]
    assert [seal.is_expired(delayed.headers, due + after) for after in (just, late)] == [False, True]
    assert not SEAL.is_expired(signed.headers, NOW + timedelta(days=10_000))
    assert not seal.is_expired(MESSAGE.headers, NOW)


def test_copies_do_not_inherit_a_signature() -> None:
    """Whoever makes a copy with other headers signs it anew: a stale signature would condemn it."""
    copies = (
        h.strip(SIGNED.headers),
        h.successor(SIGNED.headers, Generation(0, 2), None),
        h.held(SIGNED.headers, NOW),
        h.parked(SIGNED.headers, "shop.work", NOW),
        h.letter(SIGNED.headers, Generation(0, 1), Failure(reason="permanent")),
        h.redriven(SIGNED.headers, at_ms=0, failure="f", run_again=False),
    )
    assert [h.seals(copy) for copy in copies] == [{}] * len(copies)


def test_signing_anew_replaces_the_signature() -> None:
    """What is signed twice bears the second signature only."""
    again = ring("old").sign(SIGNED, NOW + timedelta(days=1))
    assert reason(again) is None
    assert again.headers[h.KEY_ID] == "old"


def test_a_body_that_is_text_is_signed_as_it_travels() -> None:
    """Text without a named encoding travels as UTF-8, and says so."""
    assert reason(SEAL.sign(replace(MESSAGE, properties={}), NOW)) is None
    latin = replace(MESSAGE, properties={"content_encoding": "latin-1"})
    assert reason(SEAL.sign(latin, NOW)) is None


WRONG: Mapping[str, dict[str, Any]] = {
    "no key": {"keys": {}},
    "shorter than 32": {"keys": {"k": "short-secret"}},
    "a key id is": {"keys": {"k k": OLD}},
    "sign_with must say": {"keys": {"old": OLD, "new": NEW}},
    "is none of": {"keys": {"old": OLD}, "sign_with": "new"},
    "max_age": {"keys": {"old": OLD}, "max_age": 0},
    "leeway": {"keys": {"old": OLD}, "leeway": -1},
}


@pytest.mark.parametrize(("sentence", "given_"), WRONG.items(), ids=list(WRONG))
def test_wrong_settings_are_named_without_their_secrets(sentence: str, given_: dict[str, Any]) -> None:
    """An error says what is wrong and shows no secret, wherever the setting comes from."""
    with pytest.raises(ConfigurationError, match=sentence) as told:
        config.load({"signing": given_}, {})
    with pytest.raises(ValidationError) as direct:
        Signing(**given_)
    for text in (repr(told.value), str(direct.value), repr(direct.value)):
        assert not [secret for secret in (OLD, NEW, "short-secret") if secret in text]


def test_settings_come_from_the_environment() -> None:
    """``UNLOST_SIGNING`` is one JSON object; what is none is not repeated."""
    given_ = f'{{"keys": {{"a": "{OLD}"}}, "require": false, "max_age": 60}}'
    signing = config.load({}, {"UNLOST_SIGNING": given_}).signing
    assert signing is not None
    assert (signing.require, signing.max_age) == (False, timedelta(minutes=1))
    with pytest.raises(ConfigurationError, match=r"UNLOST_SIGNING.*no JSON") as told:
        config.load({}, {"UNLOST_SIGNING": f"a={OLD}"})
    assert OLD not in repr(told.value)
    assert told.value.__cause__ is None


def test_secrets_are_shown_by_nobody() -> None:
    """Neither settings nor seal show a secret when they are printed."""
    settings = config.load({"signing": {"keys": {"a": OLD}}}, {})
    assert settings.signing is not None
    shown = (
        repr(settings) + str(settings.signing) + repr(settings.signing.seal()) + settings.model_dump_json()
    )
    assert OLD not in shown


def test_a_decimal_keeps_its_signature() -> None:
    """AMQP drops the trailing zeros of a decimal."""
    assert reason(SEAL.sign(with_headers(MESSAGE, price=Decimal("1.100")), NOW)) is None

"""Deliveries keep the body that the broker sent, and are unpacked within the bound."""

from __future__ import annotations

import zlib
from types import SimpleNamespace
from typing import Any

import amqp
import pytest

from unlost.tasks.received import raw_body_of, receive_raw

BODY = b'[["a"], {}, {}]'


def received(body: bytes | str, most: int = 1000, **headers: Any) -> Any:
    """Return a delivery as the worker's consumer gets it from its channel."""
    channel = SimpleNamespace(auto_decode=True, Message=None, no_ack_consumers=None)
    receive_raw(channel, most)
    assert channel.auto_decode is False
    message = amqp.Message(
        body, content_type="application/json", content_encoding="utf-8", application_headers=headers
    )
    message.delivery_info = {"delivery_tag": 1}
    return channel.Message(message, channel=channel)


def test_a_plain_body_is_both() -> None:
    """Without compression the raw body is the body."""
    message = received(BODY)
    assert (message.body, raw_body_of(message), message.errors) == (BODY, BODY, [])


def test_a_compressed_body_is_unpacked_and_kept() -> None:
    """The task gets the unpacked body; a letter or a retry the one that its header tells of."""
    message = received(zlib.compress(BODY), compression="gzip")
    assert (message.body, raw_body_of(message), message.errors) == (BODY, zlib.compress(BODY), [])
    message.accept = {"application/json"}
    assert message.decode() == [["a"], {}, {}]


@pytest.mark.parametrize("body", [BODY, b"", "", zlib.compress(b"x" * 1001)])
def test_what_cannot_be_unpacked_is_an_error_of_the_message(body: bytes | str) -> None:
    """Kombu then calls ``on_decode_error`` and unpacks nothing itself."""
    message = received(body, compression="gzip")
    assert (message.body or b"") == raw_body_of(message) == (body or b"")
    [(kind, _, _)] = message.errors
    assert kind.__name__ == "Unsound"


def test_a_message_of_another_channel_is_its_own_raw_body() -> None:
    """Whoever receives in another way has nothing but the body."""
    assert raw_body_of(SimpleNamespace(body=BODY)) == BODY

"""No exception of py-amqp or kombu reaches the caller of a publish unnamed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import amqp.exceptions
import kombu.exceptions
import pytest
from kombu import Connection
from kombu.exceptions import OperationalError

from unlost import errors
from unlost.broker.publisher import Publisher
from unlost.core.message import Outgoing

MOMENT = timedelta(milliseconds=10)
MESSAGE = Outgoing(exchange="e", routing_key="k", body="x", headers={"task": "t"})

#: What a message's outcome is when the broker's answer to it is this; for all others it is unknown.
ANSWERS: dict[type[Exception], type[errors.PublishError] | type[errors.AccessRefused]] = {
    amqp.exceptions.NotFound: errors.Unroutable,
    amqp.exceptions.AccessRefused: errors.AccessRefused,
    amqp.exceptions.PreconditionFailed: errors.Refused,
}

#: What no publish of ours raises, and why.
NEVER: dict[type[BaseException], str] = {
    amqp.exceptions.MessageNacked: "raised by basic_publish_confirm, which is not used: nacks are events",
    amqp.exceptions.AMQPDeprecationWarning: "a warning, upon the use of a connection that is not open",
    kombu.exceptions.KombuError: "only a base",
    kombu.exceptions.OperationalError: "raised by kombu's ensure() only; ours derive from it",
    kombu.exceptions.BatchPublishError: "raised by kombu's batch publishing, which is not used",
    kombu.exceptions.SerializationError: "only a base",
    kombu.exceptions.EncodeError: "the arguments are no JSON: raised as NotSerialisable, before all else",
    kombu.exceptions.DecodeError: "consumers only",
    kombu.exceptions.NotBoundError: "declarations only, and nothing is declared",
    kombu.exceptions.MessageStateError: "consumers only",
    kombu.exceptions.LimitExceeded: "only a base",
    kombu.exceptions.ConnectionLimitExceeded: "Celery's pool is exhausted: raised as it is, before all else",
    kombu.exceptions.ChannelLimitExceeded: "channel pools are not used",
    kombu.exceptions.VersionMismatch: "raised when a transport is loaded, not by this one",
    kombu.exceptions.SerializerNotInstalled: "a serializer is misspelt: raised as it is, before all else",
    kombu.exceptions.ContentDisallowed: "consumers only",
    kombu.exceptions.InconsistencyError: "virtual transports only",
    kombu.exceptions.HttpError: "HTTP transports only",
}


def classes(module: Any) -> Iterator[type[Exception]]:
    """Return all exception classes that a module offers."""
    for _, found in inspect.getmembers(module, inspect.isclass):
        if issubclass(found, Exception):
            yield found


KNOWN = sorted({*classes(amqp.exceptions), *classes(kombu.exceptions)}, key=lambda each: each.__qualname__)
RAISED = [each for each in KNOWN if each not in NEVER]


class Peer:
    """Stands in for a connection that is open until something is sent, then fails in a chosen way."""

    frame_max = 131_072

    def __init__(self, failure: Exception, *, at: str) -> None:
        self._failure = failure
        self._at = at
        self.bytes_sent = 0
        self._writes = 0
        self.transport = SimpleNamespace(write=self._write)

    def _fail_at(self, stage: str) -> None:
        if stage == self._at:
            raise self._failure

    def _write(self, _: Any) -> None:
        self._fail_at("body" if self._writes else "head")
        self._writes += 1

    def channel(self) -> Any:
        """Open a channel."""
        self._fail_at("channel")
        events: dict[str, set[Callable[..., None]]] = {
            name: set() for name in ("basic_ack", "basic_nack", "basic_return")
        }
        return SimpleNamespace(
            channel_id=1,
            events=events,
            confirm_select=lambda: None,
            basic_qos=lambda *_: self._fail_at("announce"),
        )

    def drain_events(self, timeout: float) -> None:
        """Answer nothing, or fail."""
        self._fail_at(("idle", "announced", "answer")[self._writes])
        raise TimeoutError(f"nothing within {timeout} s")

    def collect(self) -> None:
        """Close."""


def outcome(monkeypatch: pytest.MonkeyPatch, failure: Exception, at: str) -> Exception:
    """Return what a publish raises when the connection fails like that."""

    def connect(*_: Any, **__: Any) -> Peer:
        peer = Peer(failure, at=at)
        peer._fail_at("connect")
        return peer

    monkeypatch.setattr("kombu.transport.pyamqp.Transport.establish_connection", connect)
    publisher = Publisher(
        Connection("amqp://u:s3kret@h//"), confirm_timeout=MOMENT, patience=MOMENT, connect_patience=MOMENT
    )
    with pytest.raises(Exception) as caught:  # noqa: PT011 - what it is, is the question
        publisher.publish(MESSAGE)
    return caught.value


def instance(of: type[Exception]) -> Exception:
    """Make an exception as the libraries make it."""
    return of("because")


def test_every_exception_is_accounted_for() -> None:
    """Each exception class is AMQP's or the system's, which the publisher maps, or listed with a reason.

    A new class in a new release of either library is neither, and fails this test.
    """
    unknown = [each for each in RAISED if not issubclass(each, amqp.exceptions.AMQPError | OSError)]
    assert unknown == []
    assert [each for each in NEVER if each not in KNOWN] == []
    assert [each for each in ANSWERS if each not in RAISED] == []


@pytest.mark.parametrize("raised", RAISED)
@pytest.mark.parametrize("at", ["connect", "channel", "idle", "head", "announce", "announced"])
def test_before_the_body_is_sent_nothing_is_in_doubt(
    monkeypatch: pytest.MonkeyPatch, raised: type[Exception], at: str
) -> None:
    """A failure before the body went out is BrokerUnavailable, or AccessRefused where login was refused."""
    failed = outcome(monkeypatch, instance(raised), at)
    login = raised in (amqp.exceptions.AccessRefused, amqp.exceptions.NotAllowed) and at == "connect"
    timeout = issubclass(raised, TimeoutError) and at in ("idle", "announced")
    if timeout:
        # What a link says as long as there is nothing to hear: the publish goes on, and nobody answers.
        assert isinstance(failed, errors.ConfirmUnknown)
    else:
        assert isinstance(failed, errors.AccessRefused if login else errors.BrokerUnavailable)
    assert isinstance(failed, OperationalError)


@pytest.mark.parametrize("raised", RAISED)
def test_an_answer_that_proves_nothing_is_unknown(
    monkeypatch: pytest.MonkeyPatch, raised: type[Exception]
) -> None:
    """After the body went out only an answer about this very message is a failure; all else is unknown."""
    failed = outcome(monkeypatch, instance(raised), "answer")
    assert isinstance(failed, ANSWERS.get(raised, errors.ConfirmUnknown))
    assert isinstance(failed, OperationalError)
    if isinstance(failed, errors.ConfirmUnknown):
        assert failed.outgoing is MESSAGE  # type: ignore[attr-defined]


@pytest.mark.parametrize("raised", [OSError, BrokenPipeError, ConnectionResetError, TimeoutError])
def test_an_error_of_the_system_is_mapped_too(
    monkeypatch: pytest.MonkeyPatch, raised: type[Exception]
) -> None:
    """The socket's own errors are told as those of py-amqp."""
    assert isinstance(outcome(monkeypatch, instance(raised), "head"), errors.BrokerUnavailable)
    assert isinstance(outcome(monkeypatch, instance(raised), "body"), errors.ConfirmUnknown)
    assert isinstance(outcome(monkeypatch, instance(raised), "answer"), errors.ConfirmUnknown)


def test_each_publish_error_is_also_kombus() -> None:
    """Every error that a publish raises is caught by ``except kombu.exceptions.OperationalError``."""
    from unlost.broker import errors as ours

    made = [each for each in classes(ours) if each.__module__ == ours.__name__]
    assert made
    for each in made:
        assert issubclass(each, OperationalError)
        assert issubclass(each, errors.BrokerError)

"""The headers of our messages: their names, and how a successor's and a letter's are made.

Headers are a cache of the ledger, never the truth where a store exists. Readers ignore what they do
not know, so that a message of a newer minor release can be read by an older one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from unlost.core.clock import epoch_ms
from unlost.core.ids import Generation, MessageId

PREFIX = "x-unlost-"
VERSION = "x-unlost-v"
KEY = "x-unlost-key"
#: Of the payload, as its publisher saw it: a worker of another release may fill in other defaults.
FINGERPRINT = "x-unlost-fingerprint"
CORRELATION_ID = "x-unlost-correlation-id"
CAUSATION_ID = "x-unlost-causation-id"
QUEUE = "x-unlost-queue"
ATTEMPT = "x-unlost-attempt"
REDRIVES = "x-unlost-redrives"
FIRST_PUBLISHED = "x-unlost-first-published"
DUE = "x-unlost-due"
EXPIRES = "x-unlost-expires"
BUDGET_START = "x-unlost-budget-start"
CRASHES = "x-unlost-crashes"
#: How often another worker took the message over from one that had fallen silent.
LOST = "x-unlost-lost"
HOLDS = "x-unlost-holds"
#: The body is a reference to a payload in a claim store.
CLAIM = "x-unlost-claim"
PARKS = "x-unlost-parks"
#: An operator's word that a message may run although nobody can tell whether it has.
RUN_AGAIN = "x-unlost-run-again"
#: A message authentication code, the key that made it, and when it did; see :mod:`unlost.core.signing`.
SIGNATURE = "x-unlost-signature"
KEY_ID = "x-unlost-key-id"
SIGNED_AT = "x-unlost-signed-at"
#: Put into a request by the parent for the child; never on the wire.
HOLDER = "x-unlost-holder"
RAW_BODY = "x-unlost-raw-body"

DEATH_REASON = "x-unlost-death-reason"
DEATH_EXCEPTION_TYPE = "x-unlost-death-exception-type"
DEATH_EXCEPTION = "x-unlost-death-exception"
DEATH_TRACEBACK = "x-unlost-death-traceback"
DEATH_WORKER = "x-unlost-death-worker"
DEATH_FAILED_AT = "x-unlost-death-failed-at"
DEATH_EXCHANGE = "x-unlost-death-exchange"
DEATH_ROUTING_KEY = "x-unlost-death-routing-key"
DEATH_CODE_VERSION = "x-unlost-death-code-version"
#: What a redrive notes on the message, so that a letter which comes back tells of it.
REDRIVEN_AT = "x-unlost-redriven-at"
REDRIVEN_FOR = "x-unlost-redriven-for"
_DEATH = "x-unlost-death-"
#: Names of headers with which no letter could be published: too large, or of a form that cannot be sent.
DEATH_DROPPED = "x-unlost-death-dropped"

CURRENT_VERSION = 1

#: All headers of a letter together; the broker adds its own and a frame must hold them all.
LETTER_BUDGET = 32 * 1024

#: Of a message whose headers fit into no letter, so many are kept of so many bytes.
_MOST_KEPT = 256
_LIGHT = 256

#: A header may claim any number; beyond this one it is taken for garbage (stores count in 32 bits).
_MOST = 2**31 - 2

_LOCAL = frozenset({HOLDER, RAW_BODY})
#: They belong to one publish: a copy with other headers is signed anew, or not at all.
_SEALS = frozenset({SIGNATURE, KEY_ID, SIGNED_AT})
#: What brokers, their plugins and shovels add, and what an operator notes on a letter that is parked.
_ADDED = frozenset({"CC", "BCC", "timestamp_in_ms", "x-routed-by", "x-received-from", "x-shovelled"})
_ADDED_PREFIXES = ("x-shovelled-", "x-unlost-parked-")
_BROKER_OWNED = frozenset({"x-death", "x-delivery-count", "x-acquired-count"})
_BROKER_PREFIXES = ("x-opt-", "x-first-death-", "x-last-death-")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt ended without success; goes into the ledger and onto the letter."""

    reason: str
    exception_type: str = ""
    exception: str = ""
    traceback: str = ""
    worker: str = ""
    failed_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Origin:
    """By which exchange and key a delivery came, and the version of the code that ran it, if known."""

    exchange: str = ""
    routing_key: str = ""
    code_version: str = ""


def strip(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers without what the broker owns, what never leaves the process, and a signature.

    A client can send ``x-delivery-count: 77`` and it is delivered as it is, and Celery copies such
    headers from a delivery to its retry, so none of them may travel on.
    """
    return {name: value for name, value in headers.items() if not _stays_behind(name)}


@lru_cache(maxsize=1024)
def _stays_behind(name: str | bytes) -> bool:
    """Whether a header must not travel on. The same names come with every message."""
    # A name that is no UTF-8 arrives as bytes.
    if not isinstance(name, str):
        return False
    return name in _BROKER_OWNED | _LOCAL | _SEALS or name.startswith(_BROKER_PREFIXES)


@lru_cache(maxsize=1024)
def _tells_of_death(name: str | bytes) -> bool:
    return isinstance(name, str) and name.startswith(_DEATH)


def implied() -> dict[str, Any]:
    """Return the headers of Celery's protocol that say nothing, and what a reader takes a missing one for.

    The protocol calls most of them optional
    (https://docs.celeryq.dev/en/stable/internals/protocol.html), and Celery reads all of them as such:
    5.7 by ``get``, with these defaults. ``ignore_result`` is not among them: there, false is an
    answer and missing is none.
    """
    return {
        "eta": None,
        "shadow": None,
        "group": None,
        "group_index": None,
        "parent_id": None,
        "retries": 0,
        "replaced_task_nesting": 0,
        "timelimit": [None, None],
        "stamped_headers": None,
        "stamps": {},
    }


#: Two stay: ``self.request`` of a plain task would say ``None`` of them, and not what it says else.
_IMPLIED = {name: value for name, value in implied().items() if name not in ("timelimit", "stamps")}


def lean(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers of a task without those that say nothing: eight of Celery's nineteen, as a rule.

    Every header costs broker, parent and child a little, at every delivery. What is no task keeps all.
    """
    if "task" not in headers or "id" not in headers:
        return dict(headers)
    return {name: value for name, value in headers.items() if name not in _IMPLIED or value != _IMPLIED[name]}


def sealed(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers that a signature covers: all but itself and what is added on the way."""
    return {name: value for name, value in headers.items() if _is_sealed(name)}


@lru_cache(maxsize=1024)
def _is_sealed(name: str | bytes) -> bool:
    if not isinstance(name, str) or name in (KEY_ID, SIGNED_AT):
        return True
    return not (_stays_behind(name) or name in _ADDED or name.startswith(_ADDED_PREFIXES))


def seals(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers that are a message's signature, as they are."""
    return {name: value for name, value in headers.items() if name in _SEALS}


def unsealed(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers without a signature."""
    return {name: value for name, value in headers.items() if name not in _SEALS}


def before_death(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return a letter's headers without what it says of its death."""
    return {name: value for name, value in headers.items() if not _tells_of_death(name)}


def generation_of(headers: Mapping[str, Any]) -> Generation:
    """Return the generation a delivery claims; a message of plain Celery is the first.

    A dead letter that is delivered as a task was sent back, by whatever tool: that is a redrive, also
    when the tool (a shovel, say) knows nothing of ours and did not raise the number. Taken at its word it
    would be what the ledger has declared dead, and be acked.
    """
    redrives = _integer(headers, REDRIVES, 0)
    if DEATH_REASON in headers:
        return Generation(redrives + 1, 1)
    return Generation(redrives, _integer(headers, ATTEMPT, 1, least=1))


def message_id_of(headers: Mapping[str, Any]) -> MessageId:
    """Return the identity of a delivered message."""
    return MessageId(str(headers["task"]), str(headers["id"]), _integer(headers, "replaced_task_nesting", 0))


def age_ms_of(headers: Mapping[str, Any], now_ms: int) -> int:
    """Return for how long a message could have run: since its publish, or since it was due if that is later.

    A message of plain Celery does not say when it was published; it counts as new.
    """
    since = max(_integer(headers, FIRST_PUBLISHED, now_ms, most=None), _integer(headers, DUE, 0, most=None))
    return max(0, now_ms - since)


def _integer(
    headers: Mapping[str, Any], name: str, default: int, *, least: int = 0, most: int | None = _MOST
) -> int:
    value = headers.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        return default
    return value if least <= value and (most is None or value <= most) else default


def successor(headers: Mapping[str, Any], generation: Generation, due: datetime | None) -> dict[str, Any]:
    """Return the headers of the next attempt: the same message, another attempt, a time to run."""
    changed = {
        name: value
        for name, value in headers.items()
        if not _stays_behind(name) and not _tells_of_death(name)
    }
    changed[ATTEMPT] = generation.attempt
    changed[REDRIVES] = generation.redrives
    changed["retries"] = generation.attempt - 1
    changed.pop(HOLDS, None)
    changed.pop(PARKS, None)
    return _with_due(changed, due)


def held(headers: Mapping[str, Any], due: datetime) -> dict[str, Any]:
    """Return the headers of a copy that waits because somebody else holds its message."""
    changed = strip(headers)
    changed[HOLDS] = _integer(headers, HOLDS, 0) + 1
    return _with_due(changed, due)


def parks_of(headers: Mapping[str, Any]) -> int:
    """Return how often a message was parked because nobody could handle it."""
    return _integer(headers, PARKS, 0)


def parked(headers: Mapping[str, Any], queue: str, due: datetime) -> dict[str, Any]:
    """Return the headers of a message that waits for a worker that knows its task, or its version."""
    changed = strip(headers)
    changed[PARKS] = parks_of(headers) + 1
    changed[QUEUE] = queue
    return _with_due(changed, due)


def budget_start_of(headers: Mapping[str, Any]) -> int | None:
    """Return when a message's retry budget began, epoch milliseconds, as its headers say."""
    return _integer(headers, BUDGET_START, 0, most=None) or None


def is_newer(headers: Mapping[str, Any]) -> bool:
    """Return whether a message was written by a release whose headers we cannot read."""
    return _integer(headers, VERSION, 0) > CURRENT_VERSION


def _with_due(headers: dict[str, Any], due: datetime | None) -> dict[str, Any]:
    headers.pop(DUE, None)
    if due is not None:
        headers[DUE] = epoch_ms(due)
    return headers


def redriven(headers: Mapping[str, Any], *, at_ms: int, failure: str, run_again: bool) -> dict[str, Any]:
    """Return the headers with which a dead letter is sent back: one redrive more, and nothing of its death.

    Args:
        headers: The letter's.
        at_ms: When it is sent back, epoch milliseconds.
        failure: A fingerprint of why it died: a letter that comes back with the same one is in a loop.
        run_again: The operator wants the body to run although the message is past its expiry or the
            store's retention; what was only too late would die of the same again.
    """
    generation = Generation(_integer(headers, REDRIVES, 0) + 1, 1)
    changed = successor(headers, generation, None)
    for name in (CRASHES, LOST, BUDGET_START, RUN_AGAIN):
        changed.pop(name, None)
    if run_again:
        changed.pop(EXPIRES, None)
        if "expires" in changed:
            changed["expires"] = None
        changed[RUN_AGAIN] = generation.redrives
    changed[REDRIVEN_AT] = at_ms
    changed[REDRIVEN_FOR] = failure
    return changed


def letter(
    headers: Mapping[str, Any], generation: Generation, failure: Failure, origin: Origin | None = None
) -> dict[str, Any]:
    """Return the headers of a dead letter; text that would break the frame is cut, traceback first.

    What we add never makes them larger than :data:`LETTER_BUDGET`, unless the message brought nearly as
    much itself: then at most 1 KiB of text is added, for the message's own headers are not ours to drop.
    """
    changed = strip(headers)
    changed[ATTEMPT] = generation.attempt
    changed[REDRIVES] = generation.redrives
    changed[DEATH_REASON] = failure.reason
    changed[DEATH_EXCEPTION_TYPE] = _fit(failure.exception_type, 512)
    changed[DEATH_WORKER] = _fit(failure.worker, 512)
    changed[DEATH_FAILED_AT] = failure.failed_at_ms
    if origin is not None:
        changed[DEATH_EXCHANGE] = _fit(origin.exchange, 255)
        changed[DEATH_ROUTING_KEY] = _fit(origin.routing_key, 255)
        if origin.code_version:
            changed[DEATH_CODE_VERSION] = _fit(origin.code_version, 255)
    changed[DEATH_EXCEPTION] = changed[DEATH_TRACEBACK] = ""
    room = max(1024, LETTER_BUDGET - _size(changed))
    changed[DEATH_EXCEPTION] = _fit(failure.exception, min(4096, room // 4))
    changed[DEATH_TRACEBACK] = _fit_tail(failure.traceback, room - room // 4)
    return changed


def lightened(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers of a letter that fit into a frame whatever the message brought.

    What is ours, and what is short, stays; the names of the others are in :data:`DEATH_DROPPED`, so that
    an operator knows that there was more.
    """
    ours = {name: value for name, value in headers.items() if _is_ours(name)}
    light = [name for name, value in headers.items() if name not in ours and _is_light(name, value)]
    kept = {name: headers[name] for name in light[:_MOST_KEPT]} | ours
    dropped = ", ".join(str(name) for name in headers if name not in kept)
    return {**kept, DEATH_DROPPED: _fit(dropped, 1024)}


def _is_ours(name: Any) -> bool:
    return isinstance(name, str) and name.startswith(_DEATH)


def _is_light(name: Any, value: Any) -> bool:
    return not isinstance(value, Mapping | list | tuple) and _size({name: value}) <= _LIGHT


def _size(headers: Mapping[str, Any]) -> int:
    return sum(len(name) + 8 + len(str(value).encode(errors="replace")) for name, value in headers.items())


def _fit(text: str, limit: int) -> str:
    raw = text.encode(errors="replace")
    return raw.decode() if len(raw) <= limit else raw[: limit - 4].decode(errors="ignore") + " ..."


def _fit_tail(text: str, limit: int) -> str:
    """Keep the end of a traceback: the line that raised is the last one."""
    raw = text.encode(errors="replace")
    return raw.decode() if len(raw) <= limit else "... " + raw[-(limit - 4) :].decode(errors="ignore")

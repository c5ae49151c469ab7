"""Settings: one frozen value, validated, made from the environment, a mapping or keyword arguments.

The only reader of ``os.environ`` in the library.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from unlost.errors import ConfigurationError

Guarantee = Literal["confirms", "late_ack", "lease"]

_PREFIX = "UNLOST_"

_DURATIONS = (
    "confirm_timeout",
    "publish_patience",
    "connect_patience",
    "settle_patience",
    "lease",
    "hold",
    "claim_retention",
    "park",
    "retention",
    "shutdown_grace",
)


class Settings(BaseModel):
    """How unlost behaves; every default is the safe one.

    Attributes:
        store: SQLAlchemy URL of the ledger; beside the business tables, if effects shall happen once.
            ``none://`` for no ledger: nothing is lost, but an effect may be repeated.
        confirm_timeout: How long a publisher waits for one confirm.
        publish_patience: How long a publish is repeated under the same id before it raises.
        connect_patience: How long a publish tries to reach a broker that does not answer.
        settle_patience: How long a worker repeats the publish of a retry or a letter before it gives
            the delivery back.
        payload_warning: Bytes of a message's body above which a warning is logged.
        payload_limit: Bytes of a message's body above which it is refused before it is sent; at most the
            broker's ``max_message_size``, which is 16 MiB by default from RabbitMQ 4.0 on.
        lease: How long a lease lasts without renewal; it is renewed three times as often.
        retention: How long the store remembers what ended; what is purged earlier could be done twice. A
            message that is older than this and has no row is dead-lettered as ``too-old``.
        hold: The longest wait of a copy whose message somebody else holds.
        park: How long a message waits in all for a worker that knows its task or its version.
        result_limit: Characters of a result's JSON above which it goes to the claim store; without one it is
            refused, and the task ends as a letter.
        max_crashes: Crashes after which a message is poison.
        max_lost: Takeovers after which a message is poison.
        claim_store: URL of the store for large payloads (``file:///FOLDER``, a database, ``s3://...``);
            without one they travel in their messages.
        claim_above: Bodies of more bytes than this go to the claim store.
        claim_retention: How long a payload is kept at least, from when its message may run.
        shutdown_grace: How long running tasks may go on when the worker is told to stop soon (SIGQUIT, or
            SIGTERM with ``REMAP_SIGTERM=SIGQUIT``); then they are stopped and go back uncounted.
        code_version: Version of the application's code, a commit for instance; dead letters carry it.
        topology_check: ``refuse`` lets no worker start on a topology that is missing; ``warn`` does.
        dangerously_without: Guarantees to switch off, for the runs that prove that each is needed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = "sqlite:///unlost.sqlite"
    confirm_timeout: timedelta = timedelta(seconds=10)
    publish_patience: timedelta = timedelta(seconds=30)
    connect_patience: timedelta = timedelta(seconds=8)
    settle_patience: timedelta = timedelta(minutes=10)
    payload_warning: int = Field(default=128 * 1024, gt=0)
    payload_limit: int = Field(default=16 * 1024 * 1024, gt=0)
    lease: timedelta = timedelta(seconds=15)
    hold: timedelta = timedelta(minutes=5)
    park: timedelta = timedelta(hours=1)
    retention: timedelta = timedelta(days=14)
    result_limit: int = Field(default=1024 * 1024, gt=0)
    max_crashes: int = 3
    max_lost: int = 20
    claim_store: str | None = None
    claim_above: int = Field(default=64 * 1024, ge=0)
    claim_retention: timedelta = timedelta(days=30)
    shutdown_grace: timedelta = timedelta(seconds=10)
    code_version: str = ""
    topology_check: Literal["refuse", "warn"] = "refuse"
    dangerously_without: frozenset[Guarantee] = frozenset()

    @field_validator(*_DURATIONS, mode="before")
    @classmethod
    def _seconds(cls, value: object) -> object:
        """A bare number in a variable is seconds; pydantic reads ISO 8601 itself."""
        if isinstance(value, str) and value.replace(".", "", 1).isdecimal():
            return float(value)
        return value

    @field_validator(*_DURATIONS)
    @classmethod
    def _positive(cls, value: timedelta) -> timedelta:
        if value <= timedelta(0):
            raise ValueError("must be longer than zero")
        return value

    @field_validator("dangerously_without", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return value.replace(",", " ").split() if isinstance(value, str) else value


def load(values: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Return the settings: what ``values`` says, then ``UNLOST_*`` variables, then the defaults.

    Args:
        values: Settings by name.
        environ: Environment; the process's own when not given.

    Raises:
        ConfigurationError: A name is unknown or a value is out of range; names it and says why.
    """
    environ = os.environ if environ is None else environ
    known = {
        name: environ[_PREFIX + name.upper()]
        for name in Settings.model_fields
        if _PREFIX + name.upper() in environ
    }
    try:
        return Settings.model_validate({**known, **(values or {})})
    except ValidationError as exc:
        problems = "; ".join(_problem(error["loc"], error["msg"]) for error in exc.errors())
        raise ConfigurationError(f"settings of unlost: {problems}") from exc


def _problem(place: tuple[int | str, ...], message: str) -> str:
    name = ".".join(str(part) for part in place)
    return f"{name} ({_PREFIX}{name.upper()}): {message}"


def environment() -> dict[str, str]:
    """Return a copy of this process's environment, for those who start others."""
    return dict(os.environ)

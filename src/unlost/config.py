"""Settings: one frozen value, validated, made from the environment, a mapping or keyword arguments.

The only reader of ``os.environ`` in the library.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from unlost.core.signing import Seal
from unlost.errors import ConfigurationError

Guarantee = Literal["confirms", "late_ack", "lease", "signatures"]

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


#: An HMAC's key is as long as its digest at least (RFC 2104, section 3).
SHORTEST_SECRET = 32

_KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Signing(BaseModel):
    """How messages are signed and verified; what a signature covers is said in :mod:`unlost.core.signing`.

    Attributes:
        keys: Secrets by key id; each verifies. An id is 1 to 64 letters, digits, dots, dashes or
            underscores, a secret has 32 characters at least: ``secrets.token_urlsafe(32)`` makes one.
        sign_with: The id of the key that signs; may be left out if there is one only.
        require: Dead-letter messages without a signature. Off, they are accepted, from anybody: for the
            time in which not all publishers sign yet.
        max_age: How long after it was signed, or due if that is later, a message may be seen for the first
            time; longer than the longest backlog that shall be worked off. ``None`` for no bound.
        leeway: How far clocks may be apart; added to ``max_age``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    keys: Mapping[str, SecretStr]
    sign_with: str = ""
    require: bool = True
    max_age: timedelta | None = None
    leeway: timedelta = timedelta(minutes=1)

    @field_validator("keys")
    @classmethod
    def _strong(cls, keys: Mapping[str, SecretStr]) -> Mapping[str, SecretStr]:
        if not keys:
            raise ValueError("there is no key")
        for name, secret in keys.items():
            if not _KEY_ID.fullmatch(name):
                raise ValueError("a key id is 1 to 64 letters, digits, dots, dashes or underscores")
            if len(secret.get_secret_value()) < SHORTEST_SECRET:
                raise ValueError(
                    f"the secret of {name!r} is shorter than {SHORTEST_SECRET} characters: make one with "
                    'python -c "import secrets; print(secrets.token_urlsafe(32))"'
                )
        return keys

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.sign_with and len(self.keys) > 1:
            raise ValueError(f"sign_with must say which of {', '.join(sorted(self.keys))} signs")
        if self.sign_with and self.sign_with not in self.keys:
            raise ValueError(f"sign_with={self.sign_with!r} is none of {', '.join(sorted(self.keys))}")
        if self.max_age is not None and self.max_age <= timedelta(0):
            raise ValueError("max_age must be longer than zero, or None for no bound")
        if self.leeway < timedelta(0):
            raise ValueError("leeway must not be below zero")
        return self

    def seal(self) -> Seal:
        """Return what signs and verifies."""
        return Seal(
            keys={name: secret.get_secret_value().encode() for name, secret in self.keys.items()},
            sign_with=self.sign_with or next(iter(self.keys)),
            require=self.require,
            max_age=self.max_age,
            leeway=self.leeway,
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
        signing: How messages are signed; ``None`` if they are not. In ``UNLOST_SIGNING`` a JSON object.
        dangerously_without: Guarantees to switch off, for the runs that prove that each is needed.
    """

    # An input can be a secret.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

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
    signing: Signing | None = None
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

    @field_validator("signing", mode="before")
    @classmethod
    def _from_json(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value) if value else None
        except ValueError:
            # What it says stays out of the error: secrets are in it.
            raise ValueError('is no JSON object such as {"keys": {"2026-01": "..."}}') from None

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
        # Not chained: what was given, secrets too, is in the other error.
        raise ConfigurationError(f"settings of unlost: {problems}") from None


def _problem(place: tuple[int | str, ...], message: str) -> str:
    name = ".".join(str(part) for part in place)
    return f"{name} ({_PREFIX}{str(place[0]).upper()}): {message}"


def environment() -> dict[str, str]:
    """Return a copy of this process's environment, for those who start others."""
    return dict(os.environ)

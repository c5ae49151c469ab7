"""Secrets in what tools show. What is sent back, journaled or exported is never changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from pydantic import BaseModel, SecretBytes, SecretStr

from unlost.deadletter.letter import DeadLetter

HIDDEN = "**********"

#: Hidden in every task's payload, whatever else is said.
ALWAYS = frozenset(
    {"password", "passwd", "secret", "token", "access_token", "refresh_token", "api_key", "apikey"}
    | {"authorization", "cvv", "cvc", "card_number", "private_key", "client_secret"}
)

#: Shorter ones are too common to be hidden in running text.
_SHORTEST = 4


@dataclass(frozen=True, kw_only=True)
class Redactor:
    """What to hide.

    Attributes:
        names: Field names to hide in every payload, in any depth; compared without case.
        by_task: More names for single tasks.
        models: The tasks' payload models: fields of type ``SecretStr`` and ``SecretBytes`` are hidden.
    """

    names: frozenset[str] = ALWAYS
    by_task: Mapping[str, frozenset[str]] = field(default_factory=dict)
    models: Mapping[str, type[BaseModel]] = field(default_factory=dict)

    def payload(self, letter: DeadLetter) -> Any:
        """Return the decoded payload with secrets hidden; ``None`` if it is no JSON."""
        return _hidden(letter.payload, self._names_of(letter))

    def text(self, letter: DeadLetter, text: str) -> str:
        """Return text (an exception, a traceback) without the values that are hidden in the payload."""
        names = self._names_of(letter)
        for value in sorted(set(_secrets(letter.payload, names)), key=len, reverse=True):
            if len(value) >= _SHORTEST:
                # As Python prints it, too: that is how it gets into messages.
                text = text.replace(value, HIDDEN).replace(repr(value)[1:-1], HIDDEN)
        return text

    def _names_of(self, letter: DeadLetter) -> frozenset[str]:
        model = self.models.get(letter.task)
        secret = frozenset(secret_fields(model)) if model else frozenset()
        chosen = self.names | self.by_task.get(letter.task, frozenset()) | secret
        return frozenset(name.lower() for name in chosen)


def secret_fields(model: type[BaseModel], seen: frozenset[type] = frozenset()) -> Iterator[str]:
    """Yield names and aliases of all fields that hold a secret, also in models within."""
    for name, info in model.model_fields.items():
        types = set(_types(info.annotation))
        if types & {SecretStr, SecretBytes}:
            yield name
            if info.alias:
                yield info.alias
        for inner in types - seen:
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from secret_fields(inner, seen | {model, inner})


def _types(annotation: Any) -> Iterator[Any]:
    yield annotation
    for argument in get_args(annotation):
        yield from _types(argument)


def _hidden(value: Any, names: frozenset[str]) -> Any:
    match value:
        case dict():
            return {
                name: HIDDEN if str(name).lower() in names and inner is not None else _hidden(inner, names)
                for name, inner in value.items()
            }
        case list():
            return [_hidden(inner, names) for inner in value]
        case _:
            return value


def _secrets(value: Any, names: frozenset[str]) -> Iterator[str]:
    match value:
        case dict():
            for name, inner in value.items():
                yield from _leaves(inner) if str(name).lower() in names else _secrets(inner, names)
        case list():
            for inner in value:
                yield from _secrets(inner, names)


def _leaves(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for inner in value.values():
                yield from _leaves(inner)
        case list():
            for inner in value:
                yield from _leaves(inner)
        case int() | float():
            yield json.dumps(value)

"""Changing arguments of a task before it is sent back, checked against what the task takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from unlost.deadletter.disposition import edited
from unlost.deadletter.letter import DeadLetter
from unlost.errors import ConfigurationError


@dataclass(frozen=True)
class Edit:
    """Sets keyword arguments; everything else of the message stays.

    Attributes:
        values: The new arguments by name.
        models: The tasks' payload models. A task without one is not edited: nothing could be checked.
    """

    values: Mapping[str, Any]
    models: Mapping[str, type[BaseModel]]

    @classmethod
    def parse(cls, texts: Sequence[str], models: Mapping[str, type[BaseModel]]) -> Edit:
        """Read ``name=JSON``; what is no JSON is taken as text.

        Raises:
            ConfigurationError: There is no ``=``, or no model to check against.
        """
        if not models:
            raise ConfigurationError(
                "an edit is checked against the task's payload model: give the app (--app module:app), whose "
                "tasks must have one"
            )
        values: dict[str, Any] = {}
        for text in texts:
            name, equals, value = text.partition("=")
            if not equals or not name:
                raise ConfigurationError(f"{text!r} is no edit such as amount=100 or currency='\"EUR\"'")
            try:
                values[name] = json.loads(value)
            except ValueError:
                values[name] = value
        return cls(values, models)

    def __call__(self, letter: DeadLetter) -> bytes:
        """Return the body with the new arguments.

        Raises:
            ValueError: The task has no model, or its model refuses them. The message names the fields and
                shows no value of the payload.
        """
        model = self.models.get(letter.task)
        if model is None:
            raise ValueError(f"{letter.task or 'the letter'} has no payload model to check the edit against")
        if letter.arguments is None:
            raise ValueError("its body is no JSON task message")
        args, kwargs = letter.arguments
        changed = {**kwargs, **self.values}
        try:
            model.model_validate(changed)
        except ValidationError as exc:
            problems = "; ".join(
                f"{'.'.join(map(str, each['loc']))}: {each['msg']}"
                for each in exc.errors(include_input=False)
            )
            raise ValueError(f"{letter.task} does not take that: {problems}") from None
        return edited(letter, args, changed)

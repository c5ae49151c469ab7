"""The shape of a topology's YAML: a JSON Schema for editors, and the keys that each place takes."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a topology's YAML.

    Objects that have a default for everything may be written with nothing behind their name, which YAML
    reads as null: the schema allows it, as the loader does.
    """
    schema = model.model_json_schema(mode="validation")
    _allow_nothing(schema)
    return {
        "$schema": DIALECT,
        "title": "unlost topology",
        **{k: v for k, v in schema.items() if k != "title"},
    }


def _allow_nothing(node: object) -> None:
    """Allow null wherever a named object may be left empty."""
    if isinstance(node, list):
        for each in node:
            _allow_nothing(each)
    elif isinstance(node, dict):
        for each in node.values():
            _allow_nothing(each)
        values = node.get("additionalProperties")
        if isinstance(values, dict) and ("$ref" in values or "oneOf" in values):
            node["additionalProperties"] = {"anyOf": [values, {"type": "null"}]}
        if isinstance(node.get("oneOf"), list) and "discriminator" in node:
            _default_type(node)


def _default_type(node: dict[str, Any]) -> None:
    """Let a queue without a type be a quorum queue, as the loader does."""
    node.pop("discriminator")
    node["anyOf"] = node.pop("oneOf")


def keys_of(model: type[BaseModel]) -> Mapping[tuple[str, ...], tuple[str, ...]]:
    """Return the keys that each place of a model's data takes; ``*`` stands for any name or index."""
    return dict(_keys(model, ()))


def _keys(annotation: Any, at: tuple[str, ...]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        found = [(at, tuple(annotation.model_fields))]
        for name, field in annotation.model_fields.items():
            found += _keys(field.annotation, (*at, name))
        return found
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _keys(inner[0], at)
    if origin in (Union, types.UnionType):
        members = [each for each in inner if each is not type(None)]
        if len(members) == 1:
            return _keys(members[0], at)
        # A union of models is told apart by its type, which pydantic puts into the place of an error.
        return [key for each in members for key in _keys(each, (*at, _tag(each)))]
    if origin is not None and origin is not Literal and inner:
        return _keys(inner[0] if origin is tuple else inner[-1], (*at, "*"))
    return []


def _tag(model: Any) -> str:
    kind = getattr(model, "model_fields", {}).get("type")
    return str(get_args(kind.annotation)[0]) if kind is not None else "*"

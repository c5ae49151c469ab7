"""How results are kept in the ledger: as JSON text, a model as its fields."""

from __future__ import annotations

from typing import Any

from kombu.utils import json
from pydantic import BaseModel


def encode_result(result: Any) -> str | None:
    """Return a result as the ledger keeps it."""
    if isinstance(result, BaseModel):
        result = result.model_dump(mode="json")
    return None if result is None else str(json.dumps(result))


def decode_result(result: str | None) -> Any:
    """Return a recorded result."""
    return None if result is None else json.loads(result)

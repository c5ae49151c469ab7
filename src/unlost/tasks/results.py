"""How results are kept in the ledger: as JSON text, a model as its fields."""

from __future__ import annotations

from typing import Any

from kombu.utils import json
from pydantic import BaseModel

from unlost.errors import Permanent


def encode_result(result: Any) -> str | None:
    """Return a result as the ledger keeps it.

    Raises:
        Permanent: It cannot be kept; the task would return the same again, so it is not retried.
    """
    if isinstance(result, BaseModel):
        result = result.model_dump(mode="json")
    try:
        return None if result is None else str(json.dumps(result))
    except (TypeError, ValueError) as exc:
        raise Permanent(f"the result, a {type(result).__name__}, is no JSON: {exc}") from exc


def decode_result(result: str | None) -> Any:
    """Return a recorded result."""
    return None if result is None else json.loads(result)

"""How results are kept in the ledger: as JSON text, a model as its fields, a large one as a claim."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from kombu.utils import json
from pydantic import BaseModel

from unlost.core.claims import Claim, key_of
from unlost.core.ids import MessageId
from unlost.errors import ClaimLost, Permanent
from unlost.tasks.runtime import Runtime

#: No JSON text begins so.
_CLAIM = "claim:"


def encode_result(runtime: Runtime, message: MessageId, result: Any) -> str | None:
    """Return a result as the ledger keeps it.

    Raises:
        Permanent: It cannot be kept; the task would return the same again, so it is not retried.
        StoreUnavailable: It is large, and the claim store does not answer.
    """
    text = text_of(result)
    limit = runtime.settings.result_limit
    if text is None or len(text) <= limit:
        return text
    if runtime.claims is None:
        raise Permanent(
            f"the result has {len(text)} characters, more than result_limit={limit}: store the data and "
            "return a reference, give a claim_store, or raise result_limit"
        )
    return _kept(runtime, message, text.encode())


def text_of(result: Any) -> str | None:
    """Return a result as JSON text; nothing for nothing.

    Raises:
        Permanent: It is no JSON.
    """
    if isinstance(result, BaseModel):
        result = result.model_dump(mode="json")
    try:
        return None if result is None else str(json.dumps(result))
    except (TypeError, ValueError) as exc:
        raise Permanent(f"the result, a {type(result).__name__}, is no JSON: {exc}") from exc


def _kept(runtime: Runtime, message: MessageId, body: bytes) -> str:
    """Put a large result into the claim store, for as long as its row may be asked for it."""
    claims, settings = runtime.claims, runtime.settings
    if claims is None:
        raise ClaimLost("there is no claim store")
    until = datetime.now(UTC) + max(settings.claim_retention, settings.retention) + settings.retention
    claim = Claim(
        key=key_of(message, until.date()),
        sha256=hashlib.sha256(body).hexdigest(),
        size=len(body),
        content_type="application/json",
        content_encoding="utf-8",
    )
    claims.store.put(claim.key, body)
    return f"{_CLAIM}{json.dumps(asdict(claim))}"


def is_claimed(result: str | None) -> bool:
    """Whether a recorded result is in the claim store."""
    return result is not None and result.startswith(_CLAIM)


def decode_result(runtime: Runtime, result: str | None) -> Any:
    """Return a recorded result.

    Raises:
        ClaimLost: It is in a claim store, and gone from there, or this worker has none.
        StoreUnavailable: The claim store does not answer.
    """
    if result is None or not is_claimed(result):
        return None if result is None else json.loads(result)
    if runtime.claims is None:
        raise ClaimLost("the result is in a claim store and this worker has none: set UNLOST_CLAIM_STORE")
    return json.loads(runtime.claims.fetch(Claim(**json.loads(result.removeprefix(_CLAIM)))))

"""Fetches the payload of a delivery that carries a claim, in the process that runs the body."""

from __future__ import annotations

from typing import Any

from kombu.compression import decompress
from kombu.exceptions import KombuError
from kombu.serialization import loads
from kombu.utils import json

from unlost.core import headers as h
from unlost.core.claims import Claim, read_claim
from unlost.core.envelope import problem_of_body
from unlost.errors import ClaimLost
from unlost.tasks.patience import while_store_is_down
from unlost.tasks.runtime import Runtime


def redeem(runtime: Runtime, request: dict[str, Any]) -> tuple[Any, Any]:
    """Return args and kwargs of the payload, and put what else it holds into the request.

    While the store does not answer the delivery is held here, and nothing runs.

    Raises:
        ClaimLost: There is no such payload, it is damaged, or this worker has no claim store.
    """
    claims = runtime.claims
    if claims is None:
        raise ClaimLost(
            "the message's payload is in a claim store and this worker has none: give its URL to "
            "unlost.install(settings={'claim_store': ...}) or in UNLOST_CLAIM_STORE"
        )
    claim = _claim(request[h.RAW_BODY])
    body = while_store_is_down(lambda: claims.fetch(claim), patience=None)
    args, kwargs, embed = _decode(claim, body)
    request.update({"args": args, "kwargs": kwargs}, **embed)
    return args, kwargs


def _claim(body: bytes | str) -> Claim:
    try:
        return read_claim(json.loads(body))
    except ValueError as exc:
        raise ClaimLost(f"the message says that its payload is in a store, and not where: {exc}") from exc


def _decode(claim: Claim, body: bytes) -> tuple[Any, Any, Any]:
    try:
        raw = decompress(body, claim.compression) if claim.compression else body
        payload = loads(raw, claim.content_type, claim.content_encoding, accept={"application/json"})
    except (KombuError, LookupError, OSError, ValueError) as exc:
        raise ClaimLost(f"the stored payload {claim.key!r} cannot be decoded: {exc}") from exc
    problem = problem_of_body(payload)
    if problem is not None:
        raise ClaimLost(f"the stored payload {claim.key!r} is no task's: {problem}")
    args, kwargs, embed = payload
    return args, kwargs, embed or {}

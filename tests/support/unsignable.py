"""The misbehaving app in a worker that cannot sign what it publishes of some messages."""

from __future__ import annotations

from datetime import datetime

from tests.support.misbehaving import *  # noqa: F403 - all of the app
from unlost.core.message import Outgoing
from unlost.core.signing import Seal

_sign = Seal.sign


def _refuse(self: Seal, message: Outgoing, at: datetime) -> Outgoing:
    if str(message.headers["id"]).startswith("unsignable"):
        # As for a text whose content_encoding is none.
        raise LookupError("unknown encoding: nowhere")
    return _sign(self, message, at)


Seal.sign = _refuse  # type: ignore[method-assign]

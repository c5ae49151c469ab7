"""The misbehaving app in a worker whose parent has a thread that never stops logging."""

from __future__ import annotations

import logging
import threading
from typing import Any

from celery.signals import worker_init

from tests.support.misbehaving import app

__all__ = ["app"]

logger = logging.getLogger(__name__)


def talk() -> None:
    """Write log lines, one after the other."""
    while True:
        logger.warning("x" * 500)


@worker_init.connect
def begin(**_: Any) -> None:
    """Begin to talk, before the first process is forked."""
    threading.Thread(target=talk, daemon=True).start()

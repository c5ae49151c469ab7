"""Waiting for a store that is down: the delivery is held meanwhile, and nothing runs twice."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Literal, TypeVar

from tenacity import (
    Retrying,
    before_sleep_log,
    retry_if_exception_type,
    stop_after_delay,
    stop_never,
    wait_exponential,
)

from unlost.errors import StoreUnavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: ``closed``: what cannot be recorded does not run. ``open``: it does, and may do so twice.
OnStoreDown = Literal["closed", "open"]


def while_store_is_down(ask: Callable[[], T], patience: timedelta | None) -> T:
    """Ask the store until it answers.

    Args:
        ask: One operation of the store.
        patience: How long to go on; ``None`` until the process is stopped.

    Raises:
        StoreUnavailable: It did not answer within the patience.
    """
    try:
        # Nearly always the first try succeeds, and the machinery below costs more than a fast store.
        return ask()
    except StoreUnavailable as exc:
        logger.warning("the store does not answer: %s", exc)
    return Retrying(
        retry=retry_if_exception_type(StoreUnavailable),
        wait=wait_exponential(multiplier=0.2, max=2),
        stop=stop_never if patience is None else stop_after_delay(patience.total_seconds()),
        before_sleep=before_sleep_log(logger, logging.WARNING),
        reraise=True,
    )(ask)

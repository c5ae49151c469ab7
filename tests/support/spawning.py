"""The misbehaving app in a worker whose processes are started anew instead of forked."""

from __future__ import annotations

from tests.support.misbehaving import app

__all__ = ["app"]

app.conf.worker_pool_start_method = "spawn"

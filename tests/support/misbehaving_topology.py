"""The topology of the misbehaving app: one work queue, delays up to a minute."""

from __future__ import annotations

from typing import Any

TOPOLOGY: dict[str, Any] = {"name": "t", "queues": {"t.work": None}, "delay": {"levels": 6}}

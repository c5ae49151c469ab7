"""Kills the broker and starts it again."""

from __future__ import annotations

from unlost.chaos.history import Recorder
from unlost.testing.brokers import Broker


def restart_broker(broker: Broker, recorder: Recorder) -> None:
    """SIGKILL the broker's node and bring it back on the same data and ports.

    Recorded as ``info`` when it goes down and ``ok`` when it answers again.
    """
    recorder.record("nemesis", "info", "restart_broker")
    broker.kill()
    broker.restart()
    recorder.record("nemesis", "ok", "restart_broker")

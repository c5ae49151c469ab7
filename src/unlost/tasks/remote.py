"""Remote control: what workers know of breakers, and an operator's word to them.

::

    celery -A shop.app inspect unlost_breakers
    celery -A shop.app control unlost_hold_breaker bank 600 "the bank is migrating"
    celery -A shop.app control unlost_release_breaker bank

The same as ``unlost breaker``, for those who have the broker and not the store. Importing this module
registers the commands with Celery.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from celery.worker.control import control_command, inspect_command

from unlost.tasks.runtime import Runtime, runtime_of


@inspect_command()
def unlost_breakers(state: Any, **_: Any) -> dict[str, Any]:
    """Say which queues of this worker flow, and if not, why."""
    seen = runtime_of(state.app).traffic.circuits()
    return {
        queue: {"state": circuit.state.value, "reason": circuit.reason, "trips": circuit.trips}
        for queue, circuit in seen.items()
    }


@control_command(
    args=[("name", str), ("seconds", float), ("reason", str)], signature="<name> <seconds> [reason]"
)
def unlost_hold_breaker(state: Any, name: str, seconds: float, reason: str = "", **_: Any) -> dict[str, str]:
    """Pause every queue that depends on a name, for so many seconds."""
    if not seconds > 0:
        return {"error": f"seconds={seconds!r} must be more than zero"}
    runtime = runtime_of(state.app)
    if runtime.throttle is None:
        return _without_store(runtime)
    # Never on the main loop: the store may take its time.
    runtime.in_background(
        runtime.throttle.hold, name, lasts=timedelta(seconds=seconds), reason=reason or "held by an operator"
    )
    return {"ok": f"breaker {name} is being held for {seconds:g} s"}


@control_command(args=[("name", str)], signature="<name>")
def unlost_release_breaker(state: Any, name: str, **_: Any) -> dict[str, str]:
    """Have one message tried at once, and all of them if it succeeds."""
    runtime = runtime_of(state.app)
    if runtime.throttle is None:
        return _without_store(runtime)
    runtime.in_background(runtime.throttle.release, name)
    return {"ok": f"breaker {name} is being released"}


def _without_store(runtime: Runtime) -> dict[str, str]:
    return {"error": f"{runtime.ledger!r} keeps no breakers: they need a store"}

"""Tasks with idempotency keys, beside the misbehaving ones."""

from __future__ import annotations

import time
from typing import Any

from pydantic import BaseModel
from sqlalchemy import insert
from tenacity import stop_after_attempt, wait_fixed

import unlost
from tests.support.misbehaving import app, effects, note, task

__all__ = ["app"]


class Charge(BaseModel):
    """What to charge for an order."""

    order: str
    amount: int = 5
    seconds: float = 0


def carry_out(self: Any, label: str) -> str:
    """Have an effect in a unit of work; the result names the run."""
    run = note(label)
    with self.unit_of_work() as work:
        work.connection.execute(insert(effects).values(label=label))
        work.result = f"{label}-run-{run}"
    return str(work.result)


@task(name="t.charge", payload=Charge, key="order")
def charge(self: Any, given: Charge) -> str:
    """Charge an order, once however many messages ask for it."""
    time.sleep(given.seconds)
    return carry_out(self, given.order)


def in_lower_case(arguments: Any) -> str:
    """Return a key that is computed."""
    return str(arguments["label"].lower())


@task(name="t.outside", key=in_lower_case, key_space="shared")
def outside(self: Any, label: str) -> str:
    """Have no unit of work: the return marks message and key done."""
    return f"{label}-run-{note(label)}"


@task(name="t.other", key=in_lower_case, key_space="shared", on_duplicate="ignore")
def other(self: Any, label: str) -> str:
    """Share its keys with :func:`outside`."""
    return f"other-{label}-run-{note(label)}"


@task(name="t.strict", payload=Charge, key=("order",), on_duplicate="raise")
def strict(self: Any, given: Charge) -> str:
    """Take duplicates for errors."""
    return carry_out(self, given.order)


@task(name="t.first_fails", payload=Charge, key="order")
def first_fails(self: Any, given: Charge) -> str:
    """Fail for good at the first run."""
    if note(f"try-{given.order}") == 1:
        raise RuntimeError("no")
    return carry_out(self, given.order)


@task(
    name="t.steps", payload=Charge, retry=unlost.RetryPolicy(wait=wait_fixed(1), stop=stop_after_attempt(3))
)
def steps(self: Any, given: Charge) -> str:
    """Call somebody outside, fail twice after it, and show the token."""
    answer = self.checkpoint("call", lambda: f"answer-{note('called')}")
    note(f"token {self.idempotency_token}")
    if self.attempt < 3:
        raise RuntimeError("after the call")
    return str(answer)


@task(name="t.receives")
def receives(self: Any, result: Any) -> None:
    """Note what a link receives."""
    note(f"received {result}")

"""An app in a Django project, on Django's own database; a message may crash once, at the point it names."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from celery import Celery

import unlost
from tests.support import django_project
from unlost.core.ids import MessageId

django_project.set_up({"default": os.environ["UNLOST_STORE"]})

from django.db import transaction  # noqa: E402 - needs settings

from tests.support.django_shop.models import Effect  # noqa: E402
from unlost.django.database import store_url  # noqa: E402
from unlost.django.task import DjangoTask  # noqa: E402

MARKS = Path(os.environ["CRASH_FOLDER"])

app = Celery("django")
runtime = unlost.install(app, topology=os.environ["TEST_TOPOLOGY"], store=store_url())


def strike(point: str, message: MessageId) -> None:
    """Crash here if the message is named for this point, once."""
    if message.id != point:
        return
    with suppress(FileExistsError):
        os.close(os.open(MARKS / f"crashed-{point}", os.O_CREAT | os.O_EXCL))
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)


runtime.points.observer = strike


def fail() -> None:
    """Be a hook that fails behind the commit."""
    raise RuntimeError("in the hook")


@app.task(base=DjangoTask, bind=True, name="d.pay", queue="t.work")
def pay(self: Any, label: str) -> None:
    """Have one effect, and a follower that is published when it commits."""
    with self.unit_of_work() as work:
        Effect.objects.create(label=label)
        strike("body", MessageId(self.name, self.request.id))
        work.publish(receipt, label)
        if label == "hook":
            transaction.on_commit(fail)
        work.result = f"{label}-done"


@app.task(base=DjangoTask, name="d.receipt", queue="t.work")
def receipt(label: str) -> None:
    """Never run here: it is written, and nobody relays."""

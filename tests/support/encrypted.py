"""The example topology's work queue consumed over TLS; nothing comes in but deliveries.

``TEST_TLS`` is a folder as ``rabbitmq/tls/make-ca`` makes it. With ``TEST_READS=once`` the worker reads once
for each time that its socket is readable, as a reader may whose transport keeps nothing back.
"""

from __future__ import annotations

import os
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

from celery import Celery
from sqlalchemy import Column, Integer, MetaData, String, Table, insert

import unlost
from unlost.tasks import consumer

FOLDER = Path(os.environ["TEST_TLS"])
metadata = MetaData()
effects = Table("effects", metadata, Column("id", Integer, primary_key=True), Column("label", String(64)))

app = Celery("encrypted")
app.conf.update(
    broker_use_ssl={
        "ca_certs": str(FOLDER / "ca.pem"),
        "certfile": str(FOLDER / "client.pem"),
        "keyfile": str(FOLDER / "client.key"),
        "cert_reqs": ssl.CERT_REQUIRED,
        "server_hostname": "localhost",
    }
)
runtime = unlost.install(app, topology=os.environ["TEST_TOPOLOGY"])
# Else a heartbeat makes the socket readable again, and what is stuck comes loose.
app.conf.broker_heartbeat = 0
with runtime.engine.begin() as _connection:
    metadata.create_all(_connection)


@app.task(base=unlost.ReliableTask, bind=True, name="e.effect", queue="shop.payments")
def effect(self: Any, label: str, _ballast: str = "") -> None:
    """Have one effect."""
    with self.unit_of_work() as work:
        work.connection.execute(insert(effects).values(label=label))


def _read_once(connection: Any, _loop: Any) -> None:
    with suppress(TimeoutError):
        connection.drain_events(timeout=0)


if os.environ.get("TEST_READS") == "once":
    patch.object(consumer, "read_all", _read_once).start()
    patch.object(consumer, "read_left", lambda _connection: False).start()

"""pytest-celery's components, wired to our images: RabbitMQ 4.3, and workers with the project in them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from celery import Celery
from pytest_celery import (
    CeleryBrokerCluster,
    CeleryTestWorker,
    CeleryWorkerCluster,
    CeleryWorkerContainer,
    RabbitMQContainer,
)
from pytest_docker_tools import container, fxtr

from unlost.broker.apply import apply
from unlost.broker.management import Management
from unlost.testing.brokers.docker import connect_engine, image_of
from unlost.testing.images import build_image

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
IMAGE = "unlost-test/parcels:latest"
STORE = "/store"


class Broker(RabbitMQContainer):
    """RabbitMQ with its management API."""

    @classmethod
    def image(cls) -> str:
        """Return the image that the chaos kit would take."""
        with connect_engine(os.environ) as engine:
            return image_of(engine, os.environ)

    @classmethod
    def ports(cls) -> dict[str, None]:
        """Return the ports to publish, on any port of the host."""
        return {"5672/tcp": None, "15672/tcp": None}

    @property
    def host_url(self) -> str:
        """Return the URL for the tests; on some hosts a published port is not what leads there."""
        host, port = self.get_addr("5672/tcp")
        return f"amqp://guest:guest@{host}:{port}//"


class Worker(CeleryWorkerContainer):
    """A worker of the project; nothing is put into it at run time."""

    @classmethod
    def command(cls, *_args: str, **_kwargs: Any) -> list[str]:
        """Return what the container runs."""
        return ["celery", "-A", "parcels", "worker", "--loglevel=INFO", "--concurrency=2", "-n", "parcels@%h"]

    @classmethod
    def initial_env(
        cls, celery_worker_cluster_config: dict[str, Any], initial: dict[str, str] | None = None
    ) -> dict[str, str]:
        """Return the environment: their broker, our store."""
        ours = {
            "PYTHONPATH": "/project",
            "UNLOST_STORE": f"sqlite:///{STORE}/parcels.sqlite",
            "UNLOST_LEASE": "4",
        }
        env: dict[str, str] = super().initial_env(celery_worker_cluster_config, {**ours, **(initial or {})})
        return env


@pytest.fixture
def default_rabbitmq_broker_cls() -> type[RabbitMQContainer]:
    """Take our broker."""
    return Broker


default_rabbitmq_broker = container(
    image="{default_rabbitmq_broker_image}",
    ports=fxtr("default_rabbitmq_broker_ports"),
    environment=fxtr("default_rabbitmq_broker_env"),
    network="{default_pytest_celery_network.name}",
    wrapper_class=Broker,
    timeout=120,
)


@pytest.fixture
def celery_broker_cluster(celery_rabbitmq_broker: Any) -> Iterator[CeleryBrokerCluster]:
    """RabbitMQ alone: there is no other broker for these tasks."""
    cluster = CeleryBrokerCluster(celery_rabbitmq_broker)
    yield cluster
    cluster.teardown()


@pytest.fixture
def celery_backend_cluster() -> None:
    """No result backend: results are in the ledger."""


@pytest.fixture(scope="session")
def worker_image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Build the project's image, with this checkout's wheel."""
    wheels = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(wheels), str(ROOT)]
    subprocess.run(command, check=True)
    base = subprocess.run([ROOT / "scripts" / "python-image"], capture_output=True, text=True, check=True)
    return build_image(
        HERE / "project",
        tag=IMAGE,
        environ=os.environ,
        requirements=("unlost",),
        wheels=list(wheels.iterdir()),
        base=base.stdout.strip(),
    )


@pytest.fixture
def store(tmp_path: Path) -> str:
    """Return the folder that test and workers share: the store is a file in it."""
    return str(tmp_path)


@pytest.fixture
def parcels(
    celery_broker_cluster: CeleryBrokerCluster, store: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ModuleType]:
    """The project's application in this process, on the broker of the test, with its topology applied."""
    node = celery_broker_cluster[0].container
    monkeypatch.setenv("CELERY_BROKER_URL", celery_broker_cluster.config()["host_urls"][0])
    monkeypatch.setenv("UNLOST_STORE", f"sqlite:///{store}/parcels.sqlite")
    monkeypatch.syspath_prepend(str(HERE / "project"))
    import parcels

    host, port = node.get_addr("15672/tcp")
    with Management(f"http://guest:guest@{host}:{port}", "/") as management:
        apply(parcels.TOPOLOGY, management)
    yield parcels
    del sys.modules["parcels"]


@pytest.fixture
def celery_setup_app(parcels: ModuleType) -> Celery:
    """The app of the whole setup is the project's."""
    app: Celery = parcels.app
    return app


@pytest.fixture
def default_worker_env(celery_worker_cluster_config: dict[str, Any], parcels: ModuleType) -> dict[str, str]:
    """The environment of workers, which find their topology declared."""
    assert parcels.app
    return Worker.initial_env(celery_worker_cluster_config)


def _worker_container() -> Any:
    return container(
        image="{worker_image}",
        environment=fxtr("default_worker_env"),
        network="{default_pytest_celery_network.name}",
        volumes={"{store}": {"bind": STORE, "mode": "rw"}},
        wrapper_class=Worker,
        timeout=120,
        command=Worker.command(),
    )


first_worker_container = _worker_container()
second_worker_container = _worker_container()


@pytest.fixture
def celery_worker_cluster(
    first_worker_container: Worker, second_worker_container: Worker, celery_setup_app: Celery
) -> Iterator[CeleryWorkerCluster]:
    """Two workers, of which one may die."""
    containers = (first_worker_container, second_worker_container)
    cluster = CeleryWorkerCluster(*(CeleryTestWorker(each, celery_setup_app) for each in containers))
    yield cluster
    cluster.teardown()

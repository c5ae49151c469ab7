"""A broker in a container of the local Docker engine, started through testcontainers."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any

from unlost.errors import HarnessError
from unlost.testing.brokers.base import NO_BUSY_WAITING, Broker
from unlost.testing.brokers.endpoint import Endpoint
from unlost.testing.brokers.owner import is_gone, own_name
from unlost.testing.brokers.ports import free_ports

IMAGE = "UNLOST_RABBITMQ_IMAGE"
OFFICIAL_IMAGE = "rabbitmq:4.3-management"
OWN_IMAGE = "unlost/rabbitmq:4.3"
"""Built by ``rabbitmq/image/build`` from Debian packages where the official one cannot be pulled."""

_SOCKET = "unix:///var/run/docker.sock"
OWNER_LABEL = "unlost.owner"
"""Names the process that a container or network belongs to."""
_RYUK = "TESTCONTAINERS_RYUK_DISABLED"
_STOP_PATIENCE = timedelta(seconds=30)
_LOG_LINES = 20
# The engine's answers to a removal that somebody else finished or has begun.
_GONE = frozenset({403, 404, 409})


class DockerBroker(Broker):
    """A RabbitMQ container on fixed ports of 127.0.0.1, so that a restart keeps the URLs.

    A process that is killed leaves its container behind; the next start of any process of this
    machine removes it.

    Args:
        environ: Where the engine is (``DOCKER_HOST`` …) and which image (``UNLOST_RABBITMQ_IMAGE``).

    Raises:
        HarnessError: The container did not start or did not become ready.
    """

    provider = "docker"
    can = frozenset({"kill", "restart", "pause", "control"})

    def __init__(self, environ: Mapping[str, str]) -> None:
        amqp_port, management_port = free_ports(2)
        amqp = Endpoint("amqp", "127.0.0.1", amqp_port, "unlost", secrets.token_hex(16), "/")
        management = Endpoint("http", "127.0.0.1", management_port, amqp.user, amqp.password)
        super().__init__(amqp, management)
        with connect_engine(environ) as engine, translated_errors("be searched for leftovers"):
            remove_orphans(engine)
            image = image_of(engine, environ)
        self._container = _container(environ, image, amqp, management)
        self._closed = False
        try:
            with translated_errors("be started"):
                self._container.start()
            self._wait_ready()
        except BaseException:
            self.close()
            raise

    def kill(self) -> None:
        """Kill the node with SIGKILL."""
        self.resume()  # the engine does not kill what is paused
        with translated_errors("be killed"):
            if self._status() == "running":
                self._node.kill(signal="SIGKILL")
                self._node.wait(timeout=_STOP_PATIENCE.total_seconds())

    def restart(self) -> None:
        """Start the node again on the same ports and data, after a kill or after a clean stop."""
        self.resume()
        with translated_errors("be restarted"):
            if self._status() == "running":
                self._node.stop(timeout=int(_STOP_PATIENCE.total_seconds()))
            self._node.start()
        self._wait_ready()

    def pause(self) -> None:
        """Freeze all processes of the container."""
        with translated_errors("be paused"):
            if self._status() != "paused":
                self._node.pause()

    def resume(self) -> None:
        """Let a paused container go on."""
        with translated_errors("be resumed"):
            if self._status() == "paused":
                self._node.unpause()

    def rabbitmqctl(self, *arguments: str) -> str:
        """Run a command on the node and return what it prints.

        Raises:
            HarnessError: It failed; the message holds what it printed.
        """
        with translated_errors("run rabbitmqctl"):
            code, output = self._node.exec_run(["rabbitmqctl", *arguments])
        text = str(output.decode(errors="replace"))
        if code:
            raise HarnessError(f"rabbitmqctl {' '.join(arguments)} on {self!r}: {text}")
        return text

    def close(self) -> None:
        """Remove the container with its data."""
        if self._closed:
            return
        self._closed = True
        with translated_errors("be removed"):
            self._container.stop(force=True, delete_volume=True)

    @property
    def _node(self) -> Any:
        return self._container.get_wrapped_container()

    def _status(self) -> str:
        self._node.reload()
        return str(self._node.status)

    def _has_ended(self) -> bool:
        with translated_errors("be looked at"):
            return self._status() in {"exited", "dead"}

    def _last_lines(self) -> str:
        with translated_errors("show its log"):
            return str(self._node.logs(tail=_LOG_LINES).decode(errors="replace"))


def unavailable(environ: Mapping[str, str]) -> str | None:
    """Say why no container can be started, or ``None``; pulls the official image if there is none."""
    try:
        import docker  # noqa: F401
        import testcontainers  # noqa: F401
    except ImportError as exc:
        return f"{exc.name} is not installed: pip install 'unlost[chaos]'"
    try:
        with connect_engine(environ) as engine:
            image_of(engine, environ)
    except HarnessError as exc:
        return str(exc)
    return None


def _container(environ: Mapping[str, str], image: str, amqp: Endpoint, management: Endpoint) -> Any:
    # testcontainers reads the environment while it is imported: not before it is needed.
    from testcontainers.core.config import testcontainers_config
    from testcontainers.core.container import DockerContainer

    if _RYUK not in environ:
        # Its reaper is one more image to pull; remove_orphans() does that work.
        testcontainers_config.ryuk_disabled = True
    container = DockerContainer(
        image,
        docker_client_kw={"environment": _engine_environ(environ)},
        name=f"unlost-{secrets.token_hex(6)}",
        env={
            "RABBITMQ_DEFAULT_USER": amqp.user,
            "RABBITMQ_DEFAULT_PASS": amqp.password,
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": NO_BUSY_WAITING,
        },
        labels={OWNER_LABEL: own_name()},
    )
    # with_bind_ports() knows ports only, and would publish them on every interface.
    container.ports = {"5672/tcp": (amqp.host, amqp.port), "15672/tcp": (management.host, management.port)}
    return container


@contextmanager
def connect_engine(environ: Mapping[str, str]) -> Iterator[Any]:
    """Connect to the local engine."""
    import docker

    with translated_errors("be reached"):
        engine = docker.from_env(environment=_engine_environ(environ))
    with closing(engine):
        yield engine


def _engine_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Add where the engine is: at ``DOCKER_HOST``, else where ``docker context`` says.

    Raises:
        HarnessError: Nobody answers there, or it is another machine.
    """
    from docker.context import ContextAPI

    host = environ.get("DOCKER_HOST")
    if not host:
        with translated_errors("be found"):
            context = ContextAPI.get_current_context()
        host = (context.Host if context else None) or _SOCKET
    if host.startswith("unix://"):
        _knock(host.removeprefix("unix://") or _SOCKET.removeprefix("unix://"))
    elif not host.startswith("npipe://"):
        raise HarnessError(
            f"the Docker engine at {host} is not on this machine, its containers' ports would not be on "
            "127.0.0.1: run RabbitMQ there yourself and set UNLOST_BROKER_URL"
        )
    return {**environ, "DOCKER_HOST": host}


def _knock(path: str) -> None:
    """Find out first whether an engine is there: docker-py leaks a socket for each one that is not."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError as exc:
            raise HarnessError(f"no Docker engine answers at {path} ({type(exc).__name__})") from exc


def image_of(engine: Any, environ: Mapping[str, str]) -> str:
    """Choose an image that is local, else pull one.

    Raises:
        HarnessError: There is none, and none can be pulled.
    """
    import docker.errors

    wanted = environ.get(IMAGE)
    for candidate in [wanted] if wanted else [OFFICIAL_IMAGE, OWN_IMAGE]:
        if engine.images.list(name=candidate):
            return candidate
    pulled = wanted or OFFICIAL_IMAGE
    try:
        engine.images.pull(pulled)
    except docker.errors.DockerException as exc:
        remedy = f"set {IMAGE} to one you have" if wanted else f"build {OWN_IMAGE} with rabbitmq/image/build"
        raise HarnessError(
            f"the Docker engine has no image {pulled} and could not pull it ({exc}): {remedy}"
        ) from exc
    return pulled


def remove_orphans(engine: Any) -> None:
    """Remove the containers, and then the networks, of processes that ended without doing so."""
    ours = {"label": OWNER_LABEL}
    for container in engine.containers.list(all=True, filters=ours, ignore_removed=True):
        if is_gone(container.labels[OWNER_LABEL]):
            with _gone_is_fine():
                container.remove(force=True, v=True)
    for network in engine.networks.list(filters=ours):
        if is_gone(network.attrs["Labels"][OWNER_LABEL]):
            with _gone_is_fine():
                network.remove()


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    import docker.errors

    try:
        yield
    except docker.errors.APIError as exc:
        if exc.status_code not in _GONE:
            raise


@contextmanager
def translated_errors(what: str) -> Iterator[None]:
    """Raise what goes wrong with the engine as :class:`HarnessError`."""
    import docker.errors
    import requests

    try:
        yield
    except (docker.errors.DockerException, requests.RequestException) as exc:
        raise HarnessError(f"the Docker engine or its container could not {what}: {exc}") from exc

"""Which broker is chosen, and what is said when there is none; no broker is started here."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Mapping
from pathlib import Path

import pytest

from unlost.errors import ConfigurationError, HarnessError
from unlost.testing.brokers import Broker, NoBroker, available, candidates, start_broker
from unlost.testing.brokers.docker import unavailable as docker_unavailable
from unlost.testing.brokers.endpoint import Endpoint, parse_endpoint
from unlost.testing.brokers.node import (
    PREFIX,
    Programs,
    find_programs,
    make_directory,
    make_node,
    sweep,
)
from unlost.testing.brokers.owner import is_gone, own_name
from unlost.testing.brokers.ports import free_ports
from unlost.testing.brokers.resolve import Provider

NAMED = {"UNLOST_BROKER_URL": "amqp://ada:s3cret@rabbit.example:5673/shop"}
AMQP = ("amqp", "amqps")


class FakeBroker(Broker):
    """A broker that only remembers whether it was closed."""

    provider = "docker"

    def __init__(self, _: Mapping[str, str]) -> None:
        super().__init__(
            Endpoint("amqp", "127.0.0.1", 1, "ada", "s3cret"),
            Endpoint("http", "127.0.0.1", 2, "ada", "s3cret"),
        )
        self.closed = False

    def close(self) -> None:
        """Remember it."""
        self.closed = True


def broken(environ: Mapping[str, str]) -> Broker:
    """Fail as a container does that never becomes ready."""
    raise HarnessError("the container did not answer")


WORKS = Provider(lambda _: None, FakeBroker)
MISSING = Provider(lambda _: "it is not installed", FakeBroker)
BROKEN = Provider(lambda _: None, broken)


@pytest.mark.parametrize(
    ("provider", "environ", "expected"),
    [
        (None, {}, ["docker", "local"]),
        (None, NAMED, ["external"]),
        (None, {"UNLOST_BROKER": "local"}, ["local"]),
        (None, {"UNLOST_BROKER": "docker", **NAMED}, ["docker"]),
        (None, {"UNLOST_BROKER": "", "UNLOST_BROKER_URL": ""}, ["docker", "local"]),
        ("docker", {"UNLOST_BROKER": "local", **NAMED}, ["docker"]),
    ],
)
def test_order(provider: str | None, environ: dict[str, str], expected: list[str]) -> None:
    """An argument beats the forcing variable, which beats a named broker, which beats the search."""
    assert candidates(provider, environ) == expected


def test_an_unknown_provider_is_refused() -> None:
    """A mistyped provider is an error that lists the right ones."""
    with pytest.raises(
        ConfigurationError, match="'podman': set UNLOST_BROKER to one of external, docker, local"
    ):
        candidates(None, {"UNLOST_BROKER": "podman"})


@pytest.mark.parametrize("first", [MISSING, BROKEN])
def test_the_next_provider_is_tried(first: Provider) -> None:
    """A provider that is missing, or fails to start, gives way to the next."""
    with start_broker(environ={}, providers={"docker": first, "local": WORKS}) as broker:
        assert isinstance(broker, FakeBroker)
        assert not broker.closed
    assert broker.closed


def test_a_broker_is_closed_when_the_test_fails() -> None:
    """An exception in the body does not leave the broker running."""
    started: list[FakeBroker] = []

    def failing_test() -> None:
        with start_broker("docker", environ={}, providers={"docker": WORKS}) as broker:
            assert isinstance(broker, FakeBroker)
            started.append(broker)
            raise LookupError

    with pytest.raises(LookupError):
        failing_test()
    assert started[0].closed


def test_no_broker_tells_all_that_was_tried() -> None:
    """The error names each provider, why it failed, and the ways out."""
    with (
        pytest.raises(NoBroker) as failure,
        start_broker(environ={}, providers={"docker": BROKEN, "local": MISSING}),
    ):
        pass
    message = str(failure.value)
    assert "docker: the container did not answer" in message
    assert "local: it is not installed" in message
    assert "UNLOST_BROKER_URL=" in message
    assert "rabbitmq-server" in message


def test_a_forced_provider_does_not_fall_back() -> None:
    """A forced provider that fails is an error even where another one would work."""
    with (
        pytest.raises(NoBroker, match="docker: it is not installed"),
        start_broker("docker", environ={}, providers={"docker": MISSING, "local": WORKS}),
    ):
        pass


def test_external_is_available_once_named() -> None:
    """Without its variable the external provider says which one to set."""
    assert available("external", NAMED) is None
    assert available("external", {}) == "UNLOST_BROKER_URL is not set"


def test_an_engine_elsewhere_is_refused() -> None:
    """A container on another machine is not on our loopback, so that engine is not used."""
    reason = docker_unavailable({"DOCKER_HOST": "tcp://docker:2375"})
    assert reason is not None
    assert "tcp://docker:2375 is not on this machine" in reason
    assert "UNLOST_BROKER_URL" in reason


def test_an_absent_engine_is_a_reason(tmp_path: Path) -> None:
    """No engine behind the socket is a reason, not an exception."""
    reason = docker_unavailable({"DOCKER_HOST": f"unix://{tmp_path}/none.sock"})
    assert reason is not None
    assert f"no Docker engine answers at {tmp_path}/none.sock" in reason


def test_a_url_is_read_and_written() -> None:
    """Escapes in user, password and vhost survive the way through an endpoint."""
    url = "amqps://a%40b:p%2Fw@rabbit.example:5673/team%2Fshop?heartbeat=30"
    endpoint = parse_endpoint(url, "X", AMQP)
    assert (endpoint.user, endpoint.password, endpoint.path) == ("a@b", "p/w", "team/shop")
    assert endpoint.url() == url
    assert endpoint.url("/").endswith(":5673/%2F?heartbeat=30")


def test_a_short_url_means_what_rabbitmq_means() -> None:
    """Port, user, password and vhost have RabbitMQ's defaults."""
    assert parse_endpoint("amqp://rabbit", "X", AMQP).url() == "amqp://guest:guest@rabbit:5672/%2F"


@pytest.mark.parametrize(
    ("url", "management"),
    [
        ("amqp://ada:pw@rabbit:5673/shop", "http://ada:pw@rabbit:15672"),
        ("amqps://ada:pw@rabbit/shop", "https://ada:pw@rabbit:15671"),
        ("amqp://ada:pw@[::1]/shop", "http://ada:pw@[::1]:15672"),
    ],
)
def test_the_management_listener_is_guessed(url: str, management: str) -> None:
    """The management API is sought on the same host, with TLS if AMQP has it."""
    assert parse_endpoint(url, "X", AMQP).management().url() == management


@pytest.mark.parametrize(
    "url",
    ["amqp://ada:s3/cret@rabbit", "amqp://ada:s3cret@rabbit:none", "redis://ada:s3cret@rabbit", "s3cret"],
)
def test_a_wrong_url_is_refused_without_its_password(url: str) -> None:
    """Neither the error nor what a traceback prints of it repeats a piece of the password."""
    with pytest.raises(ConfigurationError) as failure:
        parse_endpoint(url, "UNLOST_BROKER_URL", AMQP)
    shown = "".join(traceback.format_exception_only(failure.value))
    assert "UNLOST_BROKER_URL is not a URL" in shown
    assert "s3" not in shown
    assert failure.value.__cause__ is None
    assert failure.value.__suppress_context__ or failure.value.__context__ is None


def test_reprs_hide_the_password() -> None:
    """No repr of a broker or an endpoint shows the password."""
    broker = FakeBroker({})
    assert "s3cret" in broker.amqp_url()
    assert "s3cret" not in repr(broker) + repr(broker._amqp)


@pytest.fixture
def installation(tmp_path: Path) -> Path:
    """A file system in which RabbitMQ is installed as Debian does it."""
    scripts = tmp_path / "usr/lib/rabbitmq/lib/rabbitmq_server-3.10.8/sbin"
    wrapper = tmp_path / "usr/lib/rabbitmq/bin/rabbitmq-script-wrapper"
    for file in (scripts / "rabbitmq-server", wrapper, tmp_path / "usr/sbin/epmd"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(0o755)
    (scripts / "rabbitmq-env").touch()
    (wrapper.parent / "rabbitmq-env").touch()
    (tmp_path / "usr/sbin/rabbitmq-server").symlink_to(wrapper)
    return tmp_path


def test_the_packages_own_script_is_preferred_to_its_wrapper(installation: Path) -> None:
    """The wrapper on the PATH, which wants root, is passed over for the script it wraps."""
    programs = find_programs({"PATH": str(installation / "usr/sbin")}, installation)
    assert isinstance(programs, Programs)
    assert programs.server.parent.name == "sbin"
    assert "rabbitmq_server-3.10.8" in str(programs.server)


def test_a_script_on_the_path_wins(installation: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A RabbitMQ that the user put on the PATH is used, not the system's."""
    own = tmp_path_factory.mktemp("own")
    (own / "rabbitmq-server").touch(0o755)
    (own / "rabbitmq-env").touch()
    programs = find_programs({"PATH": f"{own}:{installation}/usr/sbin"}, installation)
    assert isinstance(programs, Programs)
    assert programs.server == (own / "rabbitmq-server").resolve()


def test_a_node_shares_nothing_with_the_system(tmp_path: Path) -> None:
    """No file of the node is outside its directory, and no variable of ours reaches it."""
    programs = Programs(Path("/x/rabbitmq-server"), Path("/x/epmd"), "/bin")
    node = make_node(tmp_path, programs)
    environ = node.specification["environ"]
    outside = {"/dev/null", "/bin"}
    paths = {value for value in environ.values() if value.startswith("/")} - outside
    assert all(path.startswith(str(tmp_path)) for path in paths)
    assert node.amqp.password not in str(node.specification)
    assert "HOME" in environ
    assert not environ.keys() & (os.environ.keys() - {"HOME", "PATH", "LANG"})


def test_a_sweep_removes_only_what_nobody_holds(tmp_path: Path) -> None:
    """A directory goes when its lock is free and it is old; a live one and a newborn one stay."""
    live, lock = make_directory({"TMPDIR": str(tmp_path)})
    dead, newborn, foreign = (tmp_path / name for name in (f"{PREFIX}dead", f"{PREFIX}new", "other"))
    for directory in (dead, newborn, foreign):
        directory.mkdir()
    for directory in (live, dead, foreign):
        os.utime(directory, (0, 0))
    try:
        sweep(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {live.name, newborn.name, foreign.name}
    finally:
        os.close(lock)


def test_a_directory_is_made_where_the_environment_says(tmp_path: Path) -> None:
    """``TMPDIR`` decides where a node's data goes, and nobody else may read it."""
    directory, lock = make_directory({"TMPDIR": str(tmp_path)})
    os.close(lock)
    assert directory.parent == tmp_path
    assert directory.stat().st_mode & 0o777 == 0o700


def test_ports_are_distinct_and_no_outgoing_connection_takes_them() -> None:
    """Ports are below the range from which the system takes those of clients."""
    ports = free_ports(5)
    assert len(set(ports)) == 5
    assert all(20_000 <= port < 30_000 for port in ports)


def test_a_taken_port_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that somebody listens on is passed over."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        first = taken.getsockname()[1]
        monkeypatch.setattr("unlost.testing.brokers.ports._LOWEST", first)
        monkeypatch.setattr("unlost.testing.brokers.ports._HIGHEST", first)
        with pytest.raises(HarnessError, match="no 1 free TCP ports"):
            free_ports(1)


def test_a_process_knows_its_own_name() -> None:
    """A live process is not gone, one that ended or whose pid was reused is, one elsewhere is unknown."""
    name = own_name()
    place, pid, started = name.split("/")
    assert not is_gone(name)
    assert is_gone(f"{place}/{pid}/{float(started) - 3600}")
    assert is_gone(f"{place}/{2**22 + 1}/{started}")
    assert not is_gone(f"elsewhere/{2**22 + 1}/{started}")

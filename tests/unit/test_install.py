"""``unlost.install``: what it refuses, what it sets, and what a task without it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

import unlost
from tests.support.apps import WORK, close, shop
from unlost import config
from unlost.errors import ConfigurationError, StoreUnavailable, TopologyError
from unlost.idempotency.none import NO_STORE
from unlost.tasks.runtime import has_runtime
from unlost.tasks.settings import REQUIRED
from unlost.topology.model import Topology, WorkQueue

NOWHERE = "amqp://guest:guest@127.0.0.1:1//"

#: For each required setting a value that contradicts it.
WRONG: dict[str, Any] = {
    "worker_disable_rate_limits": False,
    "task_default_rate_limit": "10/s",
    "task_acks_late": False,
    "task_reject_on_worker_lost": False,
    "task_acks_on_failure": True,
    "task_create_missing_queues": True,
    "task_protocol": 1,
    "task_serializer": "pickle",
    "result_serializer": "pickle",
    "accept_content": ["json", "pickle"],
    "worker_consumer": "celery.worker.consumer:Consumer",
    "worker_cancel_long_running_tasks_on_connection_loss": True,
}

Install = Callable[..., Celery]


@pytest.fixture
def install(tmp_path: Path) -> Iterator[Install]:
    """Return a function that makes an app with some settings and installs unlost on it."""
    made: list[Celery] = []

    def make(
        conf: dict[str, Any] | None = None,
        app: Celery | None = None,
        topology: Topology | None = None,
        **settings: object,
    ) -> Celery:
        app = app or Celery("shop", broker=NOWHERE, set_as_current=False)
        app.conf.update(conf or {})
        settings = {"store": f"sqlite:///{tmp_path / 'l.sqlite'}", **settings}
        unlost.install(app, topology=topology or shop(), settings=settings)
        made.append(app)
        return app

    yield make
    for app in made:
        close(app)


class Misplaced(unlost.ReliableTask):
    """A task whose queue nobody declared."""

    name = "shop.misplaced"
    queue = "shop.wrok"

    def run(self) -> None:
        """Never run."""


class Placed(unlost.ReliableTask):
    """A task whose queue is declared."""

    name = "shop.placed"
    queue = WORK

    def run(self) -> None:
        """Never run."""


def test_a_wrong_value_is_tried_for_every_required_setting() -> None:
    """The cases below are complete, also when a setting is added."""
    assert WRONG.keys() == REQUIRED.keys()


@pytest.mark.parametrize("name", REQUIRED)
def test_a_contradicting_setting_is_refused(install: Install, name: str) -> None:
    """A setting against a guarantee is a ConfigurationError that names it, its value and the needed one."""
    needed, why = REQUIRED[name]
    with pytest.raises(ConfigurationError) as caught:
        install({name: WRONG[name]})
    for words in (f"{name}={WRONG[name]!r}", f"{name}={needed!r}", why):
        assert words in str(caught.value)


@pytest.mark.parametrize("name", REQUIRED)
def test_a_contradicting_setting_of_a_config_object_is_refused(install: Install, name: str) -> None:
    """It makes no difference that the setting came by config_from_object."""
    app = Celery("shop", broker=NOWHERE, set_as_current=False)
    app.config_from_object({name: WRONG[name]})
    with pytest.raises(ConfigurationError, match=name):
        install(app=app)


def test_a_refused_install_leaves_the_app_as_it_was(install: Install) -> None:
    """After a refusal nothing is installed, and the corrected app can be."""
    app = Celery("shop", broker=NOWHERE, set_as_current=False)
    with pytest.raises(ConfigurationError):
        install({"task_acks_late": False}, app=app)
    assert not has_runtime(app)
    assert app.conf.task_acks_on_failure_or_timeout is True
    install({"task_acks_late": True}, app=app)


def test_celerys_own_confirms_are_refused(install: Install) -> None:
    """confirm_publish would block the worker's control traffic, so it is refused by name."""
    with pytest.raises(ConfigurationError, match=r"confirm_publish.*Remove"):
        install({"broker_transport_options": {"confirm_publish": True}})


@pytest.mark.parametrize("name", REQUIRED)
def test_every_required_setting_is_set(install: Install, name: str) -> None:
    """After install each setting has the value that the guarantee needs."""
    assert install().conf[name] == REQUIRED[name][0]


def test_the_same_values_are_no_contradiction(install: Install) -> None:
    """Settings that say what install says anyway are accepted."""
    assert has_runtime(install({name: needed for name, (needed, _) in REQUIRED.items()}))


def test_installing_twice_is_refused(install: Install) -> None:
    """A second install on an app is a ConfigurationError; the first stays."""
    app = install()
    with pytest.raises(ConfigurationError, match=r"'shop' already: call install once"):
        install(app=app)
    assert has_runtime(app)


def test_a_task_without_install_says_so(recwarn: pytest.WarningsRecorder) -> None:
    """delay() of a ReliableTask whose app was never installed is a ConfigurationError with the way out."""
    app = Celery("bare", broker=NOWHERE, set_as_current=False)
    task: Any = app.register_task(Placed())
    with pytest.raises(ConfigurationError, match=r"'bare'.*call unlost\.install"):
        task.delay()


def test_an_undeclared_queue_is_refused_at_registration(install: Install) -> None:
    """Registering a task whose queue the topology lacks is a TopologyError with a suggestion."""
    app = install()
    with pytest.raises(TopologyError, match=r"'shop\.wrok'.*did you mean 'shop\.work'"):
        app.register_task(Misplaced())


def test_an_undeclared_queue_is_refused_at_install(install: Install) -> None:
    """A task that was registered before is checked by install."""
    app = Celery("shop", broker=NOWHERE, set_as_current=False)
    app.register_task(Misplaced())
    with pytest.raises(TopologyError, match=r"'shop\.wrok'"):
        install(app=app)


def test_a_store_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    """A store in a folder that does not exist is StoreUnavailable at install, not at the first task."""
    app = Celery("shop", broker=NOWHERE, set_as_current=False)
    with pytest.raises(StoreUnavailable, match="no-such-folder"):
        unlost.install(app, topology=shop(), store=f"sqlite:///{tmp_path}/no-such-folder/l.sqlite")


def test_settings_come_from_variables_and_arguments_win() -> None:
    """UNLOST_* variables are read, a bare number is seconds, and an explicit value goes before them."""
    environ = {
        "UNLOST_CONFIRM_TIMEOUT": "2.5",
        "UNLOST_LEASE": "PT1M",
        "UNLOST_MAX_CRASHES": "5",
        "UNLOST_DANGEROUSLY_WITHOUT": "confirms, lease",
        "UNLOST_SOMETHING_ELSE": "ignored",
    }
    settings = config.load({"max_crashes": 7}, environ)
    assert settings.confirm_timeout == timedelta(seconds=2.5)
    assert settings.lease == timedelta(minutes=1)
    assert settings.max_crashes == 7
    assert settings.dangerously_without == {"confirms", "lease"}
    assert settings.hold == config.Settings().hold


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("confirm_timeout", "soon"),
        ("lease", "0"),
        ("publish_patience", "-1"),
        ("max_crashes", "many"),
        ("topology_check", "maybe"),
        ("dangerously_without", "everything"),
    ],
)
def test_a_bad_variable_is_named(name: str, value: str) -> None:
    """A value that cannot be is a ConfigurationError that names the setting and its variable."""
    with pytest.raises(ConfigurationError, match=rf"{name}.*UNLOST_{name.upper()}"):
        config.load(environ={f"UNLOST_{name.upper()}": value})


def test_an_unknown_setting_is_named(install: Install) -> None:
    """A misspelt setting is refused, not ignored."""
    with pytest.raises(ConfigurationError, match="confirm_timeuot"):
        install(confirm_timeuot=3)


def test_without_a_store_a_queue_must_count_deliveries(install: Install) -> None:
    """No store, and a queue on which nobody counts crashes: refused, with both ways out."""
    app = storeless(install, WorkQueue())
    with pytest.raises(ConfigurationError, match=rf"{WORK}.*without_store: true.*store="):
        app.register_task(Placed())


@pytest.mark.parametrize("asks", [{"key": "number"}, {"unique": "until_started"}], ids=str)
def test_without_a_store_nothing_is_asked_that_only_a_store_knows(
    install: Install, asks: dict[str, Any]
) -> None:
    """A key or uniqueness without a store is refused when the task is registered."""
    app = storeless(install, WorkQueue(without_store=True))
    with pytest.raises(ConfigurationError, match=f"{next(iter(asks))}=.*kept in a store"):
        app.register_task(type("Asking", (Placed,), asks)())


def storeless(install: Install, queue: WorkQueue) -> Celery:
    """Return an app without a store and with one queue."""
    return install(topology=Topology(name="shop", queues={WORK: queue}), store=NO_STORE)

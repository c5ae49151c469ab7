"""``unlost topology``: errors in one line, exit statuses, and a group that loads what it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from unlost.broker.management import Management, management_url_of, vhost_of
from unlost.cli import main
from unlost.cli.topologies.apply import makes_queues
from unlost.errors import ConfigurationError
from unlost.topology.objects import Exchange, Queue
from unlost.topology.plan import Action, Step

SHOP = str(Path(__file__).parents[2] / "topology")


def run(*arguments: str) -> Result:
    """Run the command line in this process, with none of our variables set."""
    environment = {"UNLOST_BROKER_URL": None, "CELERY_BROKER_URL": None, "UNLOST_MANAGEMENT_URL": None}
    return CliRunner(env=environment).invoke(main, arguments)


def test_help_lists_commands_without_importing_them() -> None:
    """``unlost --help`` describes every command and imports neither Celery nor an HTTP client."""
    code = (
        "import sys; from unlost.cli import main; main(['--help'], standalone_mode=False); "
        "sys.exit(' '.join({'celery', 'kombu', 'httpx', 'unlost.cli.topology'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "topology  " in done.stdout
    assert done.stderr.strip() == ""


def test_an_unknown_command_is_a_usage_error() -> None:
    """A command that does not exist exits with 2."""
    assert run("topologie").exit_code == 2


def test_a_missing_broker_is_a_usage_error() -> None:
    """Without a broker URL the error names the option."""
    result = run("topology", "apply", SHOP)
    assert result.exit_code == 2
    assert "--broker" in result.stderr


def test_an_error_of_ours_is_one_line() -> None:
    """What is wrong with a topology is one line on stderr and exit status 2."""
    result = run("topology", "apply", "/nowhere", "--broker", "amqp://guest:s3kret@localhost//")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: /nowhere: cannot be read")
    assert result.stderr.count("\n") == 1


def test_a_broker_that_is_not_there_is_one_line_without_the_password() -> None:
    """An unreachable management API is one line that does not hold the password."""
    result = run(
        "topology",
        "apply",
        SHOP,
        "--broker",
        "amqp://u:s3kret@127.0.0.1//",
        "--management",
        "http://u:s3kret@127.0.0.1:1",
    )
    assert result.exit_code == 2
    assert "127.0.0.1:1" in result.stderr
    assert "s3kret" not in result.output


def test_a_url_of_another_scheme_is_refused_without_the_password() -> None:
    """A broker URL that is no AMQP URL is refused by its scheme."""
    result = run("topology", "apply", SHOP, "--broker", "redis://:s3kret@localhost")
    assert result.exit_code == 2
    assert "'redis'" in result.stderr
    assert "s3kret" not in result.output


def test_export_prints_what_was_declared() -> None:
    """A plain export is the topology as it was understood, defaults included."""
    declared = json.loads(run("topology", "export", SHOP).stdout)
    assert declared["exchange"] == "shop"
    assert declared["queues"]["shop.stock"]["without_store"] is False


def test_expanded_export_fits_the_version() -> None:
    """An expanded export lists every object as the given version of RabbitMQ gets it."""
    objects = json.loads(run("topology", "export", "--expanded", "--rabbitmq", "3.10", SHOP).stdout)
    assert {"exchange", "queue", "binding", "policy"} == {each["kind"] for each in objects}
    assert not any("delivery-limit" in each.get("definition", {}) for each in objects)


def test_a_version_that_is_none_is_a_usage_error() -> None:
    """A version that cannot be read exits with 2 and names the option."""
    result = run("topology", "export", "--expanded", "--rabbitmq", "new", SHOP)
    assert result.exit_code == 2
    assert "--rabbitmq" in result.stderr


@pytest.mark.parametrize(
    ("amqp_url", "management", "vhost"),
    [
        ("amqp://u:p@host:5672/shop", "http://u:p@host:15672", "shop"),
        ("amqp://host", "http://guest:guest@host:15672", "/"),
        ("amqp://", "http://guest:guest@localhost:15672", "/"),
        ("amqp://u:p%40x@host//", "http://u:p%40x@host:15672", "/"),
        ("amqp://u:p@host/%2Fshop", "http://u:p@host:15672", "/shop"),
        ("amqps://u:p@[::1]:5671/a", "https://u:p@[::1]:15671", "a"),
        ("pyamqp://u:p@one/a;amqp://u:p@two/a", "http://u:p@one:15672", "a"),
    ],
)
def test_management_follows_from_the_broker_url(amqp_url: str, management: str, vhost: str) -> None:
    """Host, user and vhost of the management API are those of the AMQP URL."""
    assert (management_url_of(amqp_url), vhost_of(amqp_url)) == (management, vhost)


@pytest.mark.parametrize("url", ["amqp://u:s3kret@host", "http://", "host:15672"])
def test_a_management_url_that_is_none_is_refused(url: str) -> None:
    """A management URL must be an HTTP URL; the refusal does not repeat it."""
    with pytest.raises(ConfigurationError, match="http://user:password@host:15672") as caught:
        Management(url, "/")
    assert "s3kret" not in str(caught.value)


def test_a_command_whose_extra_is_not_installed_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra that it needs, a command ends in one line that names it, and status 2."""
    monkeypatch.setitem(sys.modules, "psutil", None)
    for name in [name for name in sys.modules if name.startswith(("unlost.chaos.crew", "unlost.chaos.demo"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "unlost.chaos.runner", raising=False)
    monkeypatch.delitem(sys.modules, "unlost.cli.demo", raising=False)
    result = CliRunner().invoke(main, ["demo"])
    assert result.exit_code == 2
    assert "pip install 'unlost[chaos]'" in result.output


def test_only_new_queues_have_to_settle() -> None:
    """A queue that is made needs its time; an exchange, and a queue that goes, do not."""
    queue, exchange = Queue(name="work"), Exchange(name="shop")
    assert makes_queues([Step(Action.CREATE, exchange), Step(Action.CREATE, queue)])
    assert not makes_queues([Step(Action.CREATE, exchange)])
    assert not makes_queues([Step(Action.DESTRUCTIVE, queue, before=queue, deletes=True)])

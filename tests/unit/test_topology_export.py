"""Exports: definitions with the right password hashes, pictures, tables and YAML."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from unlost.cli import main
from unlost.errors import TopologyError
from unlost.topology.definitions import definitions_of
from unlost.topology.expand import expand
from unlost.topology.model import Topology
from unlost.topology.passwords import hash_password, matches
from unlost.topology.picture import Graph, dot, markdown, mermaid

SHOP = Topology.load(Path(__file__).parents[2] / "topology")
OBJECTS = expand(SHOP, (4, 3)).objects


def test_a_password_hash_is_that_of_rabbitmqs_documentation() -> None:
    """The hash of the documentation's example (salt 908DC60A, password test12) is reproduced."""
    salt = bytes.fromhex("908DC60A")
    hashed = hash_password("test12", salt)
    assert hashed == "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR"
    assert matches("test12", hashed, "rabbit_password_hashing_sha256")


@pytest.mark.parametrize("algorithm", ["rabbit_password_hashing_sha256", "rabbit_password_hashing_sha512"])
def test_a_password_fits_its_own_hash_only(algorithm: str) -> None:
    """A hash fits the password that it was made of, and no other."""
    hashed = hash_password("pässword", b"salt", algorithm)
    assert matches("pässword", hashed, algorithm)
    assert not matches("password", hashed, algorithm)


@pytest.mark.parametrize("hashed", ["", "no base64!", "YWJj", base64.b64encode(b"saltdigest").decode()])
def test_what_is_no_hash_fits_nothing(hashed: str) -> None:
    """What cannot be read as a hash is of no password."""
    assert not matches("p", hashed, "rabbit_password_hashing_sha256")


def test_a_wrong_salt_is_refused() -> None:
    """A salt of another length would make a hash that no broker accepts."""
    with pytest.raises(TopologyError, match="4 bytes, not 3"):
        hash_password("p", b"abc")


def test_definitions_hold_everything_with_hashes_instead_of_passwords() -> None:
    """Every object is in its section with its vhost; a password is only there as its hash."""
    said = {
        "vhost": {"description": "the shop", "limits": {"max-queues": 9}},
        "users": {"shop": {"tags": ["management"], "password_env": "P", "limits": {"max-channels": 5}}},
        "permissions": {"shop": {"read": "^shop"}},
        "operator_policies": {"o": {"pattern": "^a", "definition": {"max-length": 7}}},
        "parameters": {"shovel": {"s": {"src-uri": "amqp://"}}},
    }
    topology = Topology.model_validate({"name": "shop", "queues": {"shop.w": None}, "objects": said})
    expanded = expand(topology, (4, 3), {"P": "s3kret"})
    found = definitions_of(expanded.objects, "/shop", lambda: b"salt")
    digest = base64.b64encode(b"salt" + hashlib.sha256(b"salts3kret").digest()).decode()
    assert found["users"] == [
        {
            "name": "shop",
            "password_hash": digest,
            "hashing_algorithm": "rabbit_password_hashing_sha256",
            "tags": ["management"],
            "limits": {"max-channels": 5},
        }
    ]
    assert "s3kret" not in json.dumps(found)
    assert [each["name"] for each in found["vhosts"]] == ["/shop"]
    for kind, section in (
        ("queue", "queues"),
        ("exchange", "exchanges"),
        ("binding", "bindings"),
        ("policy", "policies"),
    ):
        assert len(found[section]) == sum(each.kind == kind for each in expanded.objects)
        assert {each["vhost"] for each in found[section]} == {"/shop"}
    assert {each["component"] for each in found["parameters"]} == {
        "operator_policy",
        "shovel",
        "vhost-limits",
    }


@pytest.mark.parametrize("draw", [mermaid, dot])
def test_a_picture_shows_queues_and_where_their_letters_go(draw: object) -> None:
    """The picture has every queue and exchange but the delay levels, and an edge for dead letters."""
    assert callable(draw)
    picture = draw(Graph(OBJECTS))
    for name in ("shop.payments", "shop.payments.dlq", "shop.dlx", "shop.unroutable"):
        assert f'"{name}"' in picture
    assert "dead letters" in picture
    assert "celery_delayed_3" not in picture
    assert "celery_delayed_3" in draw(Graph(OBJECTS, delay_path=True))


def test_labels_are_escaped() -> None:
    """What would end a label, or begin an entity, is escaped."""
    said = {
        "exchanges": {'e"x': None},
        "queues": {"w": None},
        "bindings": [{"source": 'e"x', "destination": "w", "routing_key": "#"}],
    }
    graph = Graph(expand(Topology.model_validate({"objects": said}), (4, 3)).objects)
    assert '"e#quot;x"' in mermaid(graph)
    assert '"#35;"' in mermaid(graph)
    assert r'"e\"x"' in dot(graph)


def test_markdown_tables_say_what_is_in_effect() -> None:
    """The table of queues has a row per queue with type and effective settings."""
    table = markdown(OBJECTS)
    assert "| `shop.stock` | `quorum` | `consumer-timeout=3600000, dead-letter-exchange=shop.dlx" in table
    assert table.count("| `shop.payments` | `quorum` |") == 1


@pytest.mark.parametrize("extra", [[], ["--expanded"]])
def test_exported_yaml_is_the_same_topology(extra: list[str], tmp_path: Path) -> None:
    """What is exported as YAML, expanded or not, loads to the same objects."""
    source = Path(__file__).parents[2] / "topology"
    path = tmp_path / "t.yaml"
    done = CliRunner().invoke(main, ["topology", "export", "--format", "yaml", *extra, str(source)])
    path.write_text(done.stdout)
    again = expand(Topology.load(path), (4, 3)).objects
    assert {each.key for each in again} == {each.key for each in OBJECTS}
    assert yaml.safe_load(done.stdout)


def test_a_topology_can_come_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--module`` takes a Topology, or a function that returns one, from the current directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_topology.py").write_text(
        "import unlost\n"
        "topology = unlost.Topology(name='p', queues={'p.w': {}})\n"
        "make = lambda: topology\n"
        "no = 3\n"
    )
    for module in ("own_topology", "own_topology:topology", "own_topology:make"):
        done = CliRunner().invoke(main, ["topology", "export", "--module", module])
        assert json.loads(done.stdout)["name"] == "p"
    for module, message in (
        ("own_topology:no", "is a int"),
        ("nowhere:x", "cannot be had"),
        ("own_topology:y", "cannot be had"),
    ):
        done = CliRunner().invoke(main, ["topology", "lint", "--module", module])
        assert (done.exit_code, message in done.stderr) == (2, True)
    both = CliRunner().invoke(main, ["topology", "lint", "--module", "own_topology", str(tmp_path)])
    assert "keep one of the two" in both.stderr


def test_lint_exits_with_what_it_found(tmp_path: Path) -> None:
    """Nothing found is 0, a finding is 1 with its place; a rule can be left out; --json has all of it."""
    path = tmp_path / "t.yaml"
    path.write_text("objects:\n  queues:\n    w:\n")
    done = CliRunner().invoke(main, ["topology", "lint", str(path)])
    assert done.exit_code == 1
    assert f"{path}:3: error quorum-without-dlx: queue w" in done.stdout
    ignored = CliRunner().invoke(main, ["topology", "lint", str(path), "--ignore", "quorum-without-dlx"])
    assert (ignored.exit_code, ignored.stdout) == (0, "Nothing found.\n")
    found = json.loads(CliRunner().invoke(main, ["topology", "lint", str(path), "--json"]).stdout)
    assert [(each["rule"], each["where"]) for each in found["findings"]] == [
        ("quorum-without-dlx", f"{path}:3")
    ]


def test_the_schema_is_printed() -> None:
    """``schema`` prints one JSON object that describes the YAML."""
    assert json.loads(CliRunner().invoke(main, ["topology", "schema"]).stdout)["title"] == "unlost topology"


def test_a_password_whose_variable_is_not_set_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Definitions with a password that cannot be had are refused, by the variable's name."""
    monkeypatch.delenv("SHOP_PASSWORD", raising=False)
    path = tmp_path / "t.yaml"
    path.write_text("objects:\n  users:\n    shop: {password_env: SHOP_PASSWORD}\n")
    done = CliRunner().invoke(main, ["topology", "export", "--format", "definitions", str(path)])
    assert (done.exit_code, "$SHOP_PASSWORD" in done.stderr) == (2, True)

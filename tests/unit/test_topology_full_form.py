"""The full form: typed arguments, errors with file and line, and a way there and back."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from pydantic import ValidationError

from tests.support.topologies import any_queue, full_topologies
from unlost.errors import TopologyError
from unlost.topology.document import document_of, to_yaml
from unlost.topology.expand import expand
from unlost.topology.model import Topology
from unlost.topology.objects import Binding, Exchange, Queue, User, content, identity
from unlost.topology.queue_forms import QueueForm, QuorumQueue, form_of
from unlost.topology.schema import schema_of

PAGE = Path(__file__).parents[2] / "docs" / "topology.md"


def write(path: Path, text: str) -> Path:
    """Write a file and return its path."""
    path.write_text(text, encoding="utf-8")
    return path


def test_typed_arguments_become_the_brokers() -> None:
    """Attributes become arguments, durations milliseconds; what is not set is not sent."""
    queue = QuorumQueue(message_ttl=timedelta(seconds=90), delivery_limit=-1, arguments={"x-own": 1})
    assert queue.to_queue("w", "classic").arguments == {
        "x-queue-type": "quorum",
        "x-message-ttl": 90_000,
        "x-delivery-limit": -1,
        "x-own": 1,
    }


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"type": "quorum", "max_priority": 5}, "'max_priority' is an argument of classic queues, a quorum"),
        (
            {"type": "classic", "delivery_limit": 5},
            "'delivery_limit' is an argument of quorum queues, a classic",
        ),
        ({"type": "stream", "message_ttl": 5}, "of quorum and classic queues, a stream"),
        ({"type": "classic", "max_age": "1D"}, "of stream queues"),
        ({"arguments": {"x-max-length": 5}}, "'x-max-length' is 'max_length' of a quorum queue"),
        ({"arguments": {"x-max-priority": 5}}, "'x-max-priority' is 'max_priority' of a classic queue"),
        ({"arguments": {"x-queue-type": "classic"}}, "is 'type'"),
        ({"type": "quorum", "auto_delete": True}, "auto_delete"),
        ({"type": "mirrored"}, "mirrored"),
        ({"overflow": "drop"}, "drop-head"),
        ({"type": "stream", "max_age": "soon"}, "pattern"),
    ],
)
def test_an_argument_of_another_type_is_an_error_at_construction(form: dict[str, Any], message: str) -> None:
    """What the broker would refuse at declaration is refused when the model is built."""
    with pytest.raises(ValidationError, match=message):
        Topology.model_validate({"objects": {"queues": {"w": form}}})


@settings(deadline=None)
@given(any_queue)
def test_a_queue_can_be_read_back(form: QueueForm) -> None:
    """What is declared from a form declares the same form again."""
    queue = form.to_queue("w", "classic")
    said = form_of(queue)
    again = Topology.model_validate({"objects": {"queues": {"w": said}}}).objects
    assert again is not None
    assert again.queues["w"].to_queue("w", "classic") == queue


@settings(deadline=None, max_examples=25)
@given(full_topologies())
def test_objects_become_a_document_and_come_back(topology: Topology) -> None:
    """Whatever objects say, as YAML they say the same."""
    objects = expand(topology, (4, 3)).objects
    text = to_yaml(document_of(objects))
    again = expand(Topology.model_validate(yaml.safe_load(text)), (4, 3)).objects
    assert {identity(each): content(each) for each in again} == {
        identity(each): content(each) for each in objects
    }


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (
            "queues:\n    w:\n      type: quorum\n      max_priority: 5\n",
            3,
            "objects: queues: w: 'max_priority'",
        ),
        ("queues:\n    w:\n      lenght: 5\n", 4, "queues: w: lenght: no such key"),
        ("queues:\n    w: {max_lenght: 5}\n", 3, "did you mean 'max_length'"),
        ("exchanges:\n    e:\n      type: topik\n", 4, "must be one of direct.*'topik'"),
        ("bindings:\n    - {source: a, destination: b}\n    - {source: a}\n", 4, "destination: is missing"),
        ("policies:\n    p:\n      pattern: ^a\n", 3, "definition: is missing"),
        ("users:\n    u:\n      pasword_env: X\n", 4, "did you mean 'password_env'"),
        ("users:\n    u: {password_env: X, password_hash: abc}\n", 3, "keep one of the two"),
        ("queues:\n    amq.w:\n", 2, "'amq.w' must have"),
        ("queues:\n    w: {type: mirrored}\n", 3, "type: must be one of"),
    ],
)
def test_an_error_names_file_and_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    """An error in the full form names the file, the line of the key, and the way out."""
    path = write(tmp_path / "t.yaml", f"objects:\n  {text}")
    with pytest.raises(TopologyError, match=message) as caught:
        Topology.load(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")


def test_invalid_yaml_names_the_line(tmp_path: Path) -> None:
    """What is no YAML at all is an error with its line."""
    path = write(tmp_path / "t.yaml", "name: a\nqueues: {\n")
    with pytest.raises(TopologyError, match="not valid YAML") as caught:
        Topology.load(path)
    assert str(caught.value).startswith(f"{path}:")


def test_objects_of_several_files_are_merged(tmp_path: Path) -> None:
    """Each file of a folder may add objects of each kind, bindings too, with the lines of their own file."""
    write(tmp_path / "a.yaml", "objects:\n  queues: {w: }\n  bindings: [{source: e, destination: w}]\n")
    last = write(
        tmp_path / "b.yaml", "objects:\n  exchanges: {e: }\n  bindings:\n    - {source: e, destination: v}\n"
    )
    topology = Topology.load(tmp_path)
    assert topology.objects is not None
    assert [each.destination for each in topology.objects.bindings] == ["w", "v"]
    assert topology.where("objects", "bindings", "1") == f"{last}:4"


def test_the_same_object_in_two_files_is_refused(tmp_path: Path) -> None:
    """An object that two files declare is an error that names both lines."""
    write(tmp_path / "a.yaml", "objects:\n  queues: {w: }\n")
    write(tmp_path / "b.yaml", "objects:\n  queues:\n    w: {max_length: 3}\n")
    with pytest.raises(
        TopologyError, match=r"b\.yaml:3: objects: queues: w: already declared in .*a\.yaml:2"
    ):
        Topology.load(tmp_path)


def test_objects_alone_have_no_application() -> None:
    """Without a name there are the objects and nothing else: no delay path, no dead-letter exchange."""
    topology = Topology.model_validate({"objects": {"queues": {"w": None}}})
    assert expand(topology, (4, 3)).objects == (Queue(name="w", arguments={"x-queue-type": "quorum"}),)
    assert not topology.has_application


def test_queues_without_a_name_are_refused() -> None:
    """Work queues belong to an application, which has a name."""
    with pytest.raises(TopologyError, match="give it a 'name'"):
        Topology.model_validate({"objects": {}, "queues": {"w": None}})


def test_a_name_is_declared_once() -> None:
    """An object may not take the name of one that follows from the short form."""
    with pytest.raises(TopologyError, match=r"'w\.dlq' is taken twice"):
        Topology.model_validate({"name": "a", "queues": {"w": None}, "objects": {"queues": {"w.dlq": None}}})


def test_an_open_type_is_filled_in_from_the_vhost() -> None:
    """A queue that leaves its type open gets the one that the topology gives its vhost."""
    said = {"vhost": {"default_queue_type": "stream"}, "queues": {"w": {"type": "default"}}}
    queues = expand(Topology.model_validate({"objects": said}), (4, 3)).queues
    assert [queue.type for queue in queues] == ["stream"]


def test_a_password_comes_from_its_variable_and_is_not_shown() -> None:
    """The password of a user is what its variable holds; no repr shows it."""
    topology = Topology.model_validate({"objects": {"users": {"shop": {"password_env": "P"}}}})
    (user,) = expand(topology, (4, 3), {"P": "s3kret"}).objects
    assert isinstance(user, User)
    assert user.password == "s3kret"
    assert "s3kret" not in repr(user) + str(content(user))


@settings(deadline=None, max_examples=25)
@given(full_topologies())
def test_the_order_of_objects_is_safe(topology: Topology) -> None:
    """A queue comes after its dead-letter exchange, a binding after both its ends, if those are declared."""
    seen: set[tuple[str, str]] = set()
    objects = expand(topology, (4, 3)).objects
    declared = {identity(each) for each in objects}
    assert len(declared) == len(objects)
    for each in objects:
        if isinstance(each, Binding):
            ends = {("exchange", each.source), (each.destination_type, each.destination)}
            assert ends & declared <= seen
        if isinstance(each, Queue | Exchange):
            seen.add(identity(each))


def test_a_chain_of_dead_letter_queues_is_created_from_its_end() -> None:
    """Where a dead letter goes is there, bound, before the queue that it comes from."""
    said = {
        "exchanges": {"main": {}, "dlx": {}},
        "queues": {"w": {"dead_letter_exchange": "dlx"}, "letters": {}},
        "bindings": [
            {"source": "main", "destination": "w", "routing_key": "w"},
            {"source": "dlx", "destination": "letters", "routing_key": "w"},
        ],
    }
    order = [each.key for each in expand(Topology.model_validate({"objects": said}), (4, 3)).objects]
    assert order == ["letters", "dlx", "dlx -> letters [w]", "w", "main", "main -> w [w]"]


def test_a_circle_of_dead_letters_is_ordered_all_the_same() -> None:
    """A retry loop, whose ends need each other, is created completely."""
    said = {
        "exchanges": {"main": {}, "retry": {}},
        "queues": {"w": {"dead_letter_exchange": "retry"}, "wait": {"dead_letter_exchange": "main"}},
        "bindings": [{"source": "main", "destination": "w"}, {"source": "retry", "destination": "wait"}],
    }
    objects = expand(Topology.model_validate({"objects": said}), (4, 3)).objects
    assert len(objects) == 6


def test_the_schema_names_every_key() -> None:
    """The JSON Schema knows the short and the full form, and lets a queue be left empty."""
    schema = schema_of(Topology)
    assert set(schema["properties"]) == {"objects", "name", "exchange", "queues", "delay", "owns"}
    assert "delayed_retry_min" in schema["$defs"]["QuorumQueue"]["properties"]
    assert {"type": "null"} in schema["properties"]["queues"]["additionalProperties"]["anyOf"]
    assert schema["additionalProperties"] is False
    json.dumps(schema)


@pytest.mark.parametrize("number", range(len(PAGE.read_text().split("```yaml")) - 1))
def test_the_documented_yaml_loads(number: int, tmp_path: Path) -> None:
    """Every YAML example of the page is a topology."""
    text = PAGE.read_text().split("```yaml\n")[number + 1].split("```")[0]
    Topology.load(write(tmp_path / "t.yaml", text))

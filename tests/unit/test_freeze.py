"""Every signature inside a message has its id before it is published, so that it can be dispatched again."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.canvas import Signature

from unlost.tasks.amqp import detached, freeze

app = Celery("freezer", broker="memory://", set_as_current=False)


def sig(name: str, *args: Any, **kwargs: Any) -> Any:
    """Return a signature of a task that nobody runs."""
    return Signature(f"f.{name}", args=args, kwargs=kwargs, app=app)


def over_the_wire(signature: Any) -> Any:
    """Return what a worker reads of a signature."""
    return json.loads(json.dumps(signature))


def frozen(*links: Any) -> list[Any]:
    """Return the links of a message as a worker reads them, after they were frozen."""
    embed = {"callbacks": list(links), "errbacks": None, "chain": None, "chord": None}
    freeze(embed)
    found: list[Any] = over_the_wire(embed["callbacks"])
    return found


def id_of(signature: Any) -> str | None:
    """Return the task id of a signature."""
    found: str | None = signature["options"].get("task_id")
    return found


def linked(how: str) -> Any:
    """Return a link that has another hanging on it."""
    outer = sig("outer")
    getattr(outer, how)(sig("inner"))
    return outer


def header_of(found: Any) -> list[Any]:
    """Return the members of a chord's header, which is a list or a group."""
    header = found["kwargs"]["header"]
    return header if isinstance(header, list) else list(header["kwargs"]["tasks"])


MEMBERS: dict[str, tuple[Callable[[], Any], Callable[[Any], list[Any]]]] = {
    "a link": (lambda: sig("a"), lambda found: [found]),
    "a link of a link": (lambda: linked("link"), lambda found: [found, found["options"]["link"][0]]),
    "an errback of a link": (
        lambda: linked("link_error"),
        lambda found: [found, found["options"]["link_error"][0]],
    ),
    "a group": (
        lambda: group([sig("a"), sig("b")], app=app),
        lambda found: [found, *found["kwargs"]["tasks"]],
    ),
    "a chain": (lambda: chain(sig("a"), sig("b"), app=app), lambda found: found["kwargs"]["tasks"]),
    "a chord": (
        lambda: chord([sig("a"), sig("b")], sig("c"), app=app),
        lambda found: [*header_of(found), found["kwargs"]["body"]],
    ),
    "a chord of a group": (
        lambda: chord(group([sig("a"), sig("b")], app=app), sig("c"), app=app),
        lambda found: [*header_of(found), found["kwargs"]["body"]],
    ),
    "a group in a group": (
        lambda: group([group([sig("a"), sig("b")], app=app), sig("c")], app=app),
        lambda found: [*found["kwargs"]["tasks"][0]["kwargs"]["tasks"], found["kwargs"]["tasks"][1]],
    ),
    "a link of a chain's member": (
        lambda: chain(linked("link"), sig("b"), app=app),
        lambda found: [found["kwargs"]["tasks"][0]["options"]["link"][0]],
    ),
}


@pytest.mark.parametrize("kind", MEMBERS)
def test_whatever_a_link_is_made_of_gets_an_id_of_its_own(kind: str) -> None:
    """Links, their links, and the members of groups, chains and chords carry different ids over the wire."""
    make, members = MEMBERS[kind]
    [found] = frozen(make())
    ids = [id_of(member) for member in members(found)]
    assert all(ids)
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("kind", MEMBERS)
def test_freezing_what_is_frozen_changes_nothing(kind: str) -> None:
    """A message that is rendered again keeps the ids that its signatures have."""
    make, _ = MEMBERS[kind]
    once = frozen(make())
    assert frozen(*copy.deepcopy(once)) == once


@pytest.mark.parametrize("kind", MEMBERS)
def test_a_signature_on_two_messages_is_two_tasks(kind: str) -> None:
    """The caller's signature is left alone, so that on every message it gets ids of its own."""
    make, members = MEMBERS[kind]
    shared = make()
    before = over_the_wire(shared)
    first, second = (frozen(*detached([shared])) for _ in range(2))
    assert over_the_wire(shared) == before
    assert not {id_of(each) for each in members(first[0])} & {id_of(each) for each in members(second[0])}


@pytest.mark.parametrize("where", ["callbacks", "errbacks", "chain"])
def test_every_part_of_a_message_is_looked_at(where: str) -> None:
    """Links, errbacks and the rest of a chain are frozen alike."""
    embed: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    embed[where] = [sig("a"), sig("b")]
    freeze(embed)
    first, second = map(id_of, over_the_wire(embed[where]))
    assert first
    assert second
    assert first != second


def test_the_body_of_a_chord_is_frozen() -> None:
    """The chord that a message counts towards has its body's id."""
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": sig("body")}
    freeze(embed)
    assert id_of(over_the_wire(embed["chord"]))


def test_an_id_that_was_chosen_is_kept() -> None:
    """The application's own task id is not replaced."""
    assert [id_of(each) for each in frozen(sig("a").set(task_id="mine"))] == ["mine"]


@pytest.mark.parametrize("kind", ["a chain", "a chord"])
def test_a_chain_or_chord_has_no_id_of_its_own(kind: str) -> None:
    """An id of the whole would rename its last task, whose own was fixed."""
    [found] = frozen(MEMBERS[kind][0]())
    assert id_of(found) is None


def test_the_dispatch_uses_the_fixed_ids() -> None:
    """Celery's own freeze, at dispatch, takes the ids that were given here: each time the same."""
    [link, of_group, of_chain] = frozen(
        sig("a"), group([sig("b"), sig("c")], app=app), chain(sig("d"), sig("e"), app=app)
    )
    for dispatched in (copy.deepcopy(link), copy.deepcopy(link)):
        assert Signature.from_dict(dispatched, app=app).freeze().id == id_of(link)
    fixed = [id_of(member) for member in of_group["kwargs"]["tasks"]]
    for dispatched in (copy.deepcopy(of_group), copy.deepcopy(of_group)):
        results = Signature.from_dict(dispatched, app=app).freeze().results
        assert [result.id for result in results] == fixed
    for dispatched in (copy.deepcopy(of_chain), copy.deepcopy(of_chain)):
        last = Signature.from_dict(dispatched, app=app).freeze()
        assert [last.parent.id, last.id] == [id_of(member) for member in of_chain["kwargs"]["tasks"]]


LOOK_ALIKE = {"task": "shop.charge", "options": {"gift": True}}


@pytest.mark.parametrize(
    "link",
    [
        lambda: sig("a", order=copy.deepcopy(LOOK_ALIKE)),
        lambda: sig("a", tasks=[copy.deepcopy(LOOK_ALIKE)]),
        lambda: sig("a", header=[copy.deepcopy(LOOK_ALIKE)], body=copy.deepcopy(LOOK_ALIKE)),
        lambda: sig("a", copy.deepcopy(LOOK_ALIKE)),
        lambda: group([sig("a", tasks=[copy.deepcopy(LOOK_ALIKE)])], app=app),
    ],
    ids=["kwargs", "kwargs named tasks", "kwargs named header and body", "args", "in a group"],
)
def test_a_tasks_own_arguments_are_never_touched(link: Callable[[], Any]) -> None:
    """Data that merely looks like a signature arrives as it was given."""
    [found] = frozen(link())
    member = found["kwargs"]["tasks"][0] if found["subtask_type"] == "group" else found
    (args, kwargs) = (member["args"], member["kwargs"])
    given = [*args, *kwargs.values()]
    flat = [each for value in given for each in (value if isinstance(value, list) else [value])]
    assert flat
    assert all(each == LOOK_ALIKE for each in flat)


def test_a_message_without_successors_is_left_alone() -> None:
    """An embed of nothing stays one."""
    embed: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    freeze(embed)
    assert embed == {"callbacks": None, "errbacks": None, "chain": None, "chord": None}

"""Topology files: short, merged, and with errors that name the file, the key and the way out."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from unlost.errors import TopologyError
from unlost.topology.model import Delay, Topology, WorkQueue

SHOP = Path(__file__).parents[2] / "topology"


def write(path: Path, text: str) -> Path:
    """Write a file and return its path."""
    path.write_text(text, encoding="utf-8")
    return path


def test_the_example_loads() -> None:
    """The topology of the example application says what its code relies on."""
    shop = Topology.load(SHOP)
    assert (shop.name, shop.exchange) == ("shop", "shop")
    assert set(shop.queues) == {"shop.payments", "shop.stock", "shop.receipts"}
    assert shop.delay.levels == 28


def test_a_queue_needs_one_line(tmp_path: Path) -> None:
    """A queue with nothing behind its name has every default."""
    path = write(tmp_path / "t.yaml", "name: a\nqueues:\n  a.work:\ndelay:\n")
    assert Topology.load(path) == Topology(name="a", queues={"a.work": WorkQueue()}, delay=Delay())


def test_all_settings_are_read(tmp_path: Path) -> None:
    """Every key of the short form reaches the model."""
    text = """
    name: a
    exchange: a.tasks
    queues:
      a.work: {without_store: true, consumer_timeout: PT5M, single_active_consumer: true}
    delay: {levels: 4}
    """
    topology = Topology.load(write(tmp_path / "t.yaml", text))
    queue = WorkQueue(without_store=True, consumer_timeout=timedelta(minutes=5), single_active_consumer=True)
    assert topology == Topology(name="a", exchange="a.tasks", queues={"a.work": queue}, delay=Delay(levels=4))


def test_the_files_of_a_folder_are_merged(tmp_path: Path) -> None:
    """Each file of a folder may add queues; the order of the files does not matter."""
    write(tmp_path / "a.yaml", "queues: {s.one: }")
    write(tmp_path / "b.yml", "name: s\nqueues: {s.two: }")
    write(tmp_path / "README.md", "not a topology")
    assert set(Topology.load(tmp_path).queues) == {"s.one", "s.two"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nqueues: {w: {without_stor: true}}", r"queues: w: without_stor.*mean 'without_store'"),
        ("name: a\nqueues: {}\nqueue: {}", r"queue: no such key; did you mean 'queues'"),
        ("name: a\nqueues: {}\ndelay: {max: 4}", r"delay: max: no such key; use one of levels"),
        ("queues: {}", r"name: is missing; add it"),
        ("name: a\nqueues: {}\ndelay: {levels: 29}", r"delay: levels: .*28.*it is 29"),
        ("name: a\nqueues: {w: {consumer_timeout: soon}}", r"queues: w: consumer_timeout: .*'soon'"),
        ("name: a\nqueues: [w]", r"queues: must map"),
        ("name: a\nqueues:\n  w:\n  w:\n", r"key 'w' occurs twice.*line 4"),
        ("name: a\nqueues: {'w*': }", r"'w\*' contains"),
        ("name: amq.a\nqueues: {}", r"'amq.a' must have"),
        ("- name", r"must be a mapping"),
        ("name: [", r"not valid YAML"),
        ("name: a\nqueues: {w: , w.dlq: }", r"queue name 'w.dlq' is taken twice"),
        ("name: a\nexchange: a.dlx\nqueues: {}", r"exchange name 'a.dlx' is taken twice"),
    ],
)
def test_an_error_names_file_key_and_way_out(tmp_path: Path, text: str, message: str) -> None:
    """What is wrong in a file is one line that begins with the file's path."""
    path = write(tmp_path / "t.yaml", text)
    with pytest.raises(TopologyError, match=message) as caught:
        Topology.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_an_error_in_a_folder_names_the_file(tmp_path: Path) -> None:
    """In a folder, the file that says it is named, not the folder."""
    write(tmp_path / "a.yaml", "name: s")
    guilty = write(tmp_path / "b.yaml", "queues: {s.two: {nope: 1}}")
    with pytest.raises(TopologyError, match="nope") as caught:
        Topology.load(tmp_path)
    assert str(guilty) in str(caught.value)


@pytest.mark.parametrize("text", ["name: t", "queues: {s.one: }"])
def test_two_files_that_say_the_same_are_refused(tmp_path: Path, text: str) -> None:
    """What two files both declare is an error that names both."""
    write(tmp_path / "a.yaml", "name: s\nqueues: {s.one: }")
    write(tmp_path / "b.yaml", text)
    with pytest.raises(TopologyError, match=r"b\.yaml.*already declared in .*a\.yaml"):
        Topology.load(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A path that does not exist is an error that names it."""
    with pytest.raises(TopologyError, match=r"none\.yaml: cannot be read"):
        Topology.load(tmp_path / "none.yaml")


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    """A folder without YAML is an error, not an empty topology."""
    with pytest.raises(TopologyError, match=r"holds no \.yaml file"):
        Topology.load(tmp_path)


def test_an_undeclared_queue_is_explained() -> None:
    """Asking for an undeclared queue says what is declared, what may be meant and where to declare it."""
    with pytest.raises(TopologyError, match=r"'shop.payment'.*mean 'shop.payments'.*shop.stock.*queues:"):
        Topology.load(SHOP).work_queue("shop.payment")


def test_a_declared_queue_is_returned() -> None:
    """Asking for a declared queue returns what was declared."""
    queue = WorkQueue(without_store=True)
    assert Topology(name="s", queues={"s.w": queue}).work_queue("s.w") is queue

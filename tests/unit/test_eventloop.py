"""The event loop is not asked to forget what it does not watch, and forgets what it does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from kombu.asynchronous import Hub

from unlost.tasks.eventloop import spare_the_poller


@pytest.fixture
def hub() -> Iterator[Any]:
    """A hub that counts how often the kernel is asked to forget a descriptor."""
    made = Hub()
    made.asked = []
    unregister = made._unregister

    def counted(descriptor: int) -> None:
        made.asked.append(descriptor)
        unregister(descriptor)

    made._unregister = counted
    spare_the_poller(made)
    yield made
    made.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_what_is_not_watched_costs_nothing(hub: Any, pipe: tuple[int, int]) -> None:
    """Celery's pool asks at each turn of the loop, for each idle process."""
    hub.remove_writer(pipe[1])
    assert not hub.asked


@pytest.mark.parametrize("consolidate", [False, True])
def test_what_is_watched_is_forgotten(hub: Any, pipe: tuple[int, int], *, consolidate: bool) -> None:
    """The kernel tells of it no more: the pipe could be written to all the time."""
    hub.add(pipe[1], None if consolidate else print, hub.WRITE, consolidate=consolidate)
    assert hub.poller.poll(0)
    hub.remove_writer(pipe[1])
    assert not hub.poller.poll(0)
    assert pipe[1] not in hub.writers
    assert pipe[1] not in hub.consolidate


def test_a_reader_stays(hub: Any, pipe: tuple[int, int]) -> None:
    """Only the writer of a descriptor that is read too is forgotten."""
    hub.add_reader(pipe[0], print)
    hub.remove_writer(pipe[0])
    os.write(pipe[1], b"x")
    assert hub.poller.poll(0)

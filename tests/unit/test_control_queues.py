"""A control queue has a new name where an old one could be locked, and Celery's own where it could not."""

from __future__ import annotations

from kombu.pidbox import Mailbox

from unlost.tasks.control import FreshMailbox


def names(*, exclusive: bool) -> tuple[str, str, str]:
    """Return what two connections of a worker listen to, and what Celery would call it."""
    mailbox = FreshMailbox("celery", type="fanout", queue_exclusive=exclusive)
    celerys = Mailbox("celery", type="fanout").get_queue("w@host").name
    return mailbox.get_queue("w@host").name, mailbox.get_queue("w@host").name, celerys


def test_each_connection_has_an_exclusive_queue_of_its_own() -> None:
    """The last connection's may be locked; it still says whose it is, and what it is for."""
    first, second, celerys = names(exclusive=True)
    assert len({first, second, celerys}) == 3
    assert all(name.startswith("w@host.") and name.endswith(".celery.pidbox") for name in (first, second))


def test_a_queue_that_outlives_its_connection_is_used_again() -> None:
    """Nobody would consume the old ones, nor delete those that do not expire."""
    first, second, celerys = names(exclusive=False)
    assert first == second == celerys

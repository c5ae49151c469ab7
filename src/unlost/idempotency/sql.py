"""The ledger in a SQL database, beside the business tables so that both commit together.

No acquire waits for a lock: a row that somebody is just writing counts as held. All time is the
database's. See :mod:`unlost.database` for what each kind of database is told.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeGuard

from sqlalchemy import Connection, event, select
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session, scoped_session

from unlost.core import settlement
from unlost.core.headers import Failure
from unlost.core.ids import Generation, MessageId
from unlost.core.keys import Claim
from unlost.core.ports import Work
from unlost.core.settlement import Admission, Delivery, Held, Limits, Resend, Row, Run, State
from unlost.database.database import Database
from unlost.database.errors import is_contention, is_passing, translated
from unlost.database.foreign import ForeignDatabase, Transaction
from unlost.database.migrations import migrate
from unlost.errors import ConfigurationError, LeaseLost, StoreError, StoreUnavailable
from unlost.idempotency.holder import is_gone, is_of_another_boot
from unlost.idempotency.schema import (
    MIGRATIONS,
    PART,
    failure_text,
    from_columns,
    known_to_holder,
    messages,
    to_columns,
)
from unlost.idempotency.statements import Statements

logger = logging.getLogger(__name__)

#: How long somebody who meets a locked row leaves it alone: as long as a commit takes, and some.
BUSY = timedelta(seconds=1)


class SqlStore:
    """A :class:`unlost.core.ports.Ledger` in a SQL database.

    Args:
        url: See :class:`unlost.database.database.Database`.
        stall: How long a process that holds a row's lock may stand still (SIGSTOP, a dead network) before
            the database server ends its transaction; a lease, usually. SQLite has no server: a process
            that is stopped in a transaction stops every writer of its file.

    Raises:
        ConfigurationError: The database is not one we support.
    """

    def __init__(self, url: str, *, stall: timedelta = timedelta(seconds=15)) -> None:
        self.database = Database(url)
        self.engine = self.database.engine
        self._sql = Statements(self.database.dialect)
        self._stall = stall
        self._complete_at_last = self.database.dialect.limiting_idle(self._sql.complete, stall)

    def __repr__(self) -> str:
        return f"SqlStore({self.database.url.render_as_string(hide_password=True)!r})"

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """Open a transaction of several statements, which the server ends should we stand still in it."""
        with self.database.transaction() as connection:
            self.database.dialect.limit_idle(connection, self._stall)
            yield connection

    def create_schema(self) -> None:
        """Bring the tables to this release's version. Safe when several processes start at once."""
        migrate(self.database, PART, MIGRATIONS)

    def acquire(self, delivery: Delivery, *, lease: timedelta, limits: Limits) -> Admission:
        """Admit a delivery and write what follows. A crash before the commit leaves the row as it was."""
        first = self._admit(None, delivery, 0.0, lease, limits)
        while True:
            if isinstance(first, Run) and (granted := self._insert(delivery.message, first.row, lease)):
                return granted
            if (admission := self._acquire_present(delivery, lease, limits)) is not None:
                return admission

    def _insert(self, message: MessageId, row: Row, lease: timedelta, *, durable: bool = False) -> Run | None:
        """Write the lease of a message that nobody knows; one round trip, and no transaction of ours.

        On SQLite a lease may be lost with the host: its holder is then, too, and what was done is synced.
        """
        values = {**to_columns(row), "key": str(message), "lease": lease.total_seconds()}
        try:
            with self.database.autocommit(durable=durable) as connection:
                expires = connection.execute(self._sql.insert_first, values).scalar()
        except IntegrityError:
            # Somebody else's insert came first, between our look and our insert.
            return None
        return None if expires is None else Run(row._replace(expires=expires))

    def _acquire_present(self, delivery: Delivery, lease: timedelta, limits: Limits) -> Admission | None:
        """Admit a delivery whose message has a row; ``None`` when it has none (any more)."""
        key = {"key": str(delivery.message)}
        with self._transaction() as connection:
            try:
                found = connection.execute(self._sql.read_if_free, key).mappings().one_or_none()
            except DBAPIError as exc:
                if not is_contention(exc):
                    raise
                connection.rollback()
                return Held(BUSY.total_seconds())
            if found is None:
                return None
            admission = self._admit(from_columns(found), delivery, found["now"], lease, limits)
            if isinstance(admission, Run) or (isinstance(admission, Resend) and admission.write):
                connection.execute(self._sql.overwrite, {**to_columns(admission.row), **key})
            return admission

    def _admit(
        self, row: Row | None, delivery: Delivery, now: float, lease: timedelta, limits: Limits
    ) -> Admission:
        return settlement.admit(
            row,
            delivery,
            now=now,
            now_ms=_now_ms(),
            lease=lease,
            holder_gone=row is not None and row.holder is not None and self._is_dead(row.holder),
            limits=limits,
            decision=secrets.token_hex(16),
        )

    def _is_dead(self, holder: str) -> bool:
        """Whether a holder cannot be alive; where a store serves one host, another boot's are all dead."""
        return is_gone(holder) or (self.database.dialect.single_host and is_of_another_boot(holder))

    def complete(
        self,
        message: MessageId,
        row: Row,
        result: str | None,
        quietly: Failure | None = None,
        claim: Claim | None = None,
    ) -> None:
        """Mark the message done. After the commit it is done for ever; before it, the lease stands."""
        with self.database.autocommit() if claim is None else self._transaction() as connection:
            if self._complete(connection, message, row, result, quietly):
                self._complete_claim(connection, claim, result)
                return
        # A write of ours whose answer was lost, and that is tried again, finds itself, and its key.
        present = self.read(message)
        if not (_is_done_by(present, row) and present.result == result):
            raise _lost(message, row)
        if claim is not None and not _is_done_by(self.read(claim.key), claim.row):
            raise _lost(claim.key, claim.row)

    def _complete(
        self,
        connection: Connection | Transaction,
        message: MessageId,
        row: Row,
        result: str | None,
        quietly: Failure | None = None,
    ) -> bool:
        return connection.execute(self._sql.complete, _done(message, row, result, quietly)).rowcount == 1

    def _complete_at_the_end(
        self, connection: Connection, message: MessageId, row: Row, result: str | None
    ) -> bool:
        """Mark the message done in a transaction that the server ends should we stand still from here on."""
        if self._complete_at_last is None:
            self.database.dialect.limit_idle(connection, self._stall)
            return self._complete(connection, message, row, result)
        return bool(connection.execute(self._complete_at_last, _done(message, row, result)).all())

    def _complete_claim(
        self, connection: Connection | Transaction, claim: Claim | None, result: str | None
    ) -> None:
        if claim is not None and not self._complete(connection, claim.key, claim.row, claim.seal(result)):
            raise _lost(claim.key, claim.row)

    def cancel(self, message: MessageId, generation: Generation) -> bool:
        """Mark the message cancelled, for all its copies; false when it is done already."""
        key = {"key": str(message)}
        while True:
            with self._transaction() as connection:
                found = connection.execute(self._sql.read_locked, key).mappings().one_or_none()
                row = from_columns(found) if found else None
                if row is not None and row.state is State.DONE:
                    return False
                cancelled = settlement.cancelled(row, generation)
                if row is not None:
                    connection.execute(self._sql.overwrite, {**to_columns(cancelled), **key})
                    return True
            if self._insert(message, cancelled, timedelta(0), durable=True):
                return True

    def decide_waiting(self, message: MessageId, row: Row, *, due_ms: int, failure: Failure) -> Row:
        """End the attempt; the next delivery publishes the retry if this process does not get to it."""
        decided = settlement.decided_waiting(
            row, decision=secrets.token_hex(16), due_ms=due_ms, failure=failure
        )
        return self._replace(message, row, decided)

    def decide_dead(self, message: MessageId, row: Row, *, failure: Failure) -> Row:
        """End the attempt for good; the next delivery publishes the letter if we do not get to it."""
        return self._replace(
            message, row, settlement.decided_dead(row, decision=secrets.token_hex(16), failure=failure)
        )

    def _replace(self, message: MessageId, row: Row, decided: Row) -> Row:
        ours = {"key": str(message), "held_token": row.token}
        with self.database.autocommit() as connection:
            if connection.execute(self._sql.replace, {**known_to_holder(decided), **ours}).rowcount == 1:
                return decided
        present = self.read(message)
        if present is None or not _is_same_decision(present, decided):
            raise _lost(message, row)
        return present

    def mark_sent(self, message: MessageId, decision: str) -> bool:
        """Note the confirmed publish of a decision, unless another decision has followed."""
        with self.database.autocommit() as connection:
            values = {"key": str(message), "of_decision": decision}
            return connection.execute(self._sql.mark_sent, values).rowcount == 1

    def renew(self, holders: Collection[str], lease: timedelta) -> None:
        """Extend the leases of these holders at once; those that hold nothing are no matter."""
        if not holders:
            return
        with self._transaction() as connection:
            keys = connection.scalars(self._sql.renewable, {"holders": list(holders)}).all()
            if keys:
                connection.execute(self._sql.renew, {"keys": keys, "lease": lease.total_seconds()})

    def hand_over(self, message: MessageId, row: Row, *, to: str, lease: timedelta, note: str | None) -> Row:
        """Give a lease to another holder, for another time from now on, in one transaction."""
        given = settlement.handed_over(row, to=to, note=note)
        ours = {"key": str(message), "held_token": row.token}
        with self._transaction() as connection:
            if connection.execute(self._sql.replace, {**known_to_holder(given), **ours}).rowcount == 1:
                connection.execute(self._sql.renew, {"keys": [str(message)], "lease": lease.total_seconds()})
                return given
        present = self.read(message)
        if present is None or (present.holder, present.token) != (to, given.token):
            raise _lost(message, row)
        return present

    def end_crashed(self, holder: str) -> bool:
        """Count a crash and end the lease, in one transaction; nothing when the message is done."""
        return self._end(holder, settlement.crashed)

    def release(self, holder: str) -> bool:
        """End the lease uncounted; nothing when the holder holds nothing."""
        return self._end(holder, settlement.released)

    def _end(self, holder: str, transition: Callable[[Row], Row]) -> bool:
        with self._transaction() as connection:
            # A locking read: the COMMIT of the child that died may still be under way.
            held = connection.execute(self._sql.held_by, {"of_holder": holder}).mappings().all()
            for found in held:
                ended = to_columns(transition(from_columns(found)))
                connection.execute(self._sql.overwrite, {**ended, "key": found["message"]})
            return bool(held)

    @contextmanager
    def unit_of_work(
        self,
        message: MessageId,
        row: Row,
        encode: Callable[[Any], str | None],
        claim: Claim | None = None,
        within: Session | scoped_session[Session] | Connection | ForeignDatabase | None = None,
    ) -> Iterator[Work]:
        """Open a transaction for business rows; on exit the done record is written and all commits.

        Every other writer of a SQLite file waits meanwhile, the renewal of leases too: keep it shorter
        than the lease. What the business rows violate is raised as it is, for the task's retry policy;
        what may pass (a lost connection, a deadlock) is raised as StoreUnavailable, and always retried.

        Args:
            message: What is done.
            row: The lease.
            encode: Makes the text that is recorded of the result.
            claim: The key, done together with the message.
            within: The caller's own session or connection, on the same database (on SQLite of the store's own
                engine): the transaction is its, with all that it has done in it so far. It stays open. Or
                the same database through another library, which begins the transaction.

        Raises:
            ConfigurationError: ``within`` is on another database.
            LeaseLost: Somebody took the message over; everything is rolled back.
            StoreUnavailable: The database went away, and nothing was committed, or cannot tell.
            StoreError: The body ended the transaction itself; it is not marked done without its rows.
        """
        if isinstance(within, ForeignDatabase):
            with self.database.in_use(), self._abroad(message, row, encode, claim, within) as abroad:
                yield abroad
            return
        with self.database.in_use(), self._opened(within) as (work, transaction):
            connection = work.connection
            # A session of ours joins our transaction, and cannot commit it.
            with nullcontext() if within is None else _without_commit(connection), _passing():
                yield work
                work.flush()
            result = encode(work.result)
            if not transaction.is_active:
                raise StoreError(
                    f"{message}: its unit of work was rolled back or committed inside its block, so it "
                    "cannot end as done: leave that to the block, and use session.begin_nested() for what "
                    "may fail"
                )
            try:
                # A COMMIT that fails must be rolled back, or the pool gets a connection that holds the lock.
                with translated(), transaction:
                    # Last before COMMIT: the row's lock is held for as short a time as can be.
                    if not self._complete_at_the_end(connection, message, row, result):
                        raise _lost(message, row)
                    self._complete_claim(connection, claim, result)
            except StoreUnavailable as exc:
                self._resolve_commit(message, row, exc)

    @contextmanager
    def _abroad(
        self,
        message: MessageId,
        row: Row,
        encode: Callable[[Any], str | None],
        claim: Claim | None,
        within: ForeignDatabase,
    ) -> Iterator[ForeignWork]:
        """Do a unit of work in a transaction of another library."""
        self._refuse_another_place(within.url)
        dialect = self.database.dialect
        try:
            with within.transaction(dialect.visiting) as transaction:
                if dialect.single_host:
                    # A reader could not become a writer any more once others have written.
                    transaction.execute(self._sql.become_writer)
                work = ForeignWork(transaction)
                yield work
                result = encode(work.result)
                within.conclude()
                dialect.limit_idle(transaction, self._stall)
                if not self._complete(transaction, message, row, result):
                    raise _lost(message, row)
                self._complete_claim(transaction, claim, result)
        except StoreUnavailable as exc:
            self._resolve_commit(message, row, exc)

    @contextmanager
    def _opened(
        self, within: Session | scoped_session[Session] | Connection | None
    ) -> Iterator[tuple[SqlWork, Any]]:
        """Begin a transaction, or take the caller's; what is not committed in the end is rolled back."""
        if within is None:
            with self._connected() as connection, closing(SqlWork(connection)) as work:
                with translated():
                    transaction = connection.begin()
                yield work, transaction
            return
        with translated():
            connection = within if isinstance(within, Connection) else within.connection()
        self._refuse_elsewhere(connection)
        if isinstance(within, Connection):
            with _rolled_back(connection), closing(SqlWork(connection)) as work:
                yield work, connection.get_transaction() or connection.begin()
            return
        session = within() if isinstance(within, scoped_session) else within
        with _rolled_back(session):
            yield SqlWork(connection, session), session.get_transaction()

    def _refuse_elsewhere(self, connection: Connection) -> None:
        """Refuse a connection to another database: rows there would not commit with the done record."""
        if connection.engine is self.engine:
            return
        if self.database.dialect.single_host:
            raise ConfigurationError(
                "unit_of_work(): on SQLite the session must have the store's own engine, for a fork beside "
                "another one breaks its locks: use unlost.install(...).engine"
            )
        self._refuse_another_place(connection.engine.url)

    def _refuse_another_place(self, theirs: URL) -> None:
        ours = self.database.url
        places = [(url.get_backend_name(), url.host, url.port, url.database) for url in (theirs, ours)]
        if places[0] != places[1]:
            raise ConfigurationError(
                f"unit_of_work(): the transaction is on {theirs.render_as_string(hide_password=True)}, the "
                f"store on {ours.render_as_string(hide_password=True)}: one transaction needs one database, "
                "so give a session the engine of unlost.install(...).engine; where it is Django's, give "
                "install(...) the store_url() of unlost.django.database"
            )

    def _connected(self) -> Connection:
        with translated():
            return self.engine.connect()

    def _resolve_commit(self, message: MessageId, row: Row, exc: StoreUnavailable) -> None:
        """Find out what became of a COMMIT that was not answered.

        The read locks the row, so it waits for the end of the transaction that it asks about: the server
        may still be at it. Nobody else writes a row that is done under the next token: a takeover takes
        that one for its lease.

        Raises:
            StoreUnavailable: It did not happen, or cannot be told now; the next attempt's acquire will.
        """
        with self._transaction() as connection:
            found = connection.execute(self._sql.read_locked, {"key": str(message)}).mappings().one_or_none()
        if not _is_done_by(from_columns(found) if found else None, row):
            raise exc
        logger.warning("%s: its COMMIT was not answered, but it happened", message)

    def read(self, message: MessageId) -> Row | None:
        """Return a message's row; waits for no writer."""
        with self.database.reading() as connection:
            found = connection.execute(self._sql.read, {"key": str(message)}).mappings().one_or_none()
            return from_columns(found) if found else None

    def read_many(self, messages: Collection[MessageId]) -> Mapping[MessageId, Row]:
        """Return the rows of those that have one, in one statement."""
        names = {str(each): each for each in messages}
        with self.database.autocommit() as connection:
            found = connection.execute(self._sql.read_many, {"keys": list(names)}).mappings().all()
        return {names[each["message"]]: from_columns(each) for each in found}

    def find(self, text: str, most: int = 100) -> list[tuple[str, Row]]:
        """Return the rows whose identity contains a text."""
        matching = select(messages).where(messages.c.message.contains(text, autoescape=True))
        with self.database.autocommit() as connection:
            found = connection.execute(matching.order_by(messages.c.message).limit(most)).mappings().all()
        return [(each["message"], from_columns(each)) for each in found]

    def count_purgeable(self, older_than: timedelta) -> int:
        """Return how many rows a purge would remove."""
        with self.database.autocommit() as connection:
            return connection.execute(self._sql.count_purgeable, _older(older_than)).scalar_one()

    def purge(self, older_than: timedelta) -> int:
        """Remove what ended longer ago than this; each batch is a transaction of one statement."""
        removed = 0
        while True:
            with self.database.autocommit() as connection:
                keys = connection.scalars(self._sql.purgeable, _older(older_than)).all()
            if not keys:
                return removed
            with self.database.autocommit() as connection:
                removed += connection.execute(self._sql.purge, {**_older(older_than), "keys": keys}).rowcount

    def close(self) -> None:
        """Close the connections."""
        self.database.dispose()


class SqlWork:
    """The open transaction of :meth:`SqlStore.unit_of_work`.

    Args:
        connection: What it runs on.
        session: The caller's; without one, ours is made when it is asked for.
    """

    def __init__(self, connection: Connection, session: Session | None = None) -> None:
        self.connection = connection
        self.result: Any = None
        self._session = session

    @property
    def session(self) -> Session:
        """Return the session that belongs to the transaction."""
        if self._session is None:
            self._session = Session(bind=self.connection)
        return self._session

    def flush(self) -> None:
        """Have the session write what it has been given."""
        if self._session is not None:
            self._session.flush()

    def close(self) -> None:
        """Close the session."""
        if self._session is not None:
            self._session.close()


class ForeignWork:
    """The open transaction of :meth:`SqlStore.unit_of_work`, where another library has opened it."""

    def __init__(self, connection: Transaction) -> None:
        self.connection = connection
        self.result: Any = None

    @property
    def session(self) -> Any:
        """Refuse.

        Raises:
            ConfigurationError: The transaction is no session's.
        """
        raise ConfigurationError(
            "work.session: this unit of work is in a transaction of another library: write rows through that "
            "(Django's ORM), or through work.connection"
        )


class UnguardedStore(SqlStore):
    """The store with the lease switched off, for the runs that prove that the lease is needed."""

    def acquire(self, delivery: Delivery, *, lease: timedelta, limits: Limits) -> Admission:
        """Let every delivery run."""
        admission = super().acquire(delivery, lease=lease, limits=limits)
        if isinstance(admission, Run):
            return admission
        with self._transaction() as connection:
            key = {"key": str(delivery.message)}
            found = connection.execute(self._sql.read_locked, key).mappings().one()
            again = Row(
                state=State.LEASED,
                generation=delivery.generation,
                token=found["token"] + 1,
                holder=delivery.holder,
                expires=found["expires"] + lease.total_seconds(),
            )
            connection.execute(self._sql.overwrite, {**to_columns(again), **key})
            return Run(again)


@contextmanager
def _rolled_back(place: Session | Connection) -> Iterator[None]:
    """Roll the caller's transaction back if the block fails; it is not ours to close."""
    try:
        yield
    except BaseException:
        place.rollback()
        if isinstance(place, Connection) and not place.closed:
            # After a COMMIT that was refused SQLAlchemy believes that there is no transaction any more.
            place.connection.rollback()
        raise


@contextmanager
def _without_commit(connection: Connection) -> Iterator[None]:
    """Refuse a commit inside the block: the rows would be there without the done record."""

    def refuse(_connection: Connection) -> None:
        raise StoreError(
            "a commit inside unit_of_work(): its block commits, together with the done record; use "
            "session.begin_nested() for what may fail alone"
        )

    event.listen(connection, "commit", refuse)
    try:
        yield
    finally:
        event.remove(connection, "commit", refuse)


@contextmanager
def _passing() -> Iterator[None]:
    """Turn what may pass when it is tried again into :class:`StoreUnavailable`; leave the rest as it is."""
    try:
        yield
    except DBAPIError as exc:
        if not is_passing(exc):
            raise
        raise StoreUnavailable(f"the unit of work was cut short: {exc.orig}") from exc


def _done(message: MessageId, row: Row, result: str | None, quietly: Failure | None = None) -> dict[str, Any]:
    """Return the values with which a holder marks its message done."""
    return {
        "key": str(message),
        "held_token": row.token,
        "result": result,
        "failure": failure_text(quietly),
    }


def _is_done_by(present: Row | None, row: Row) -> TypeGuard[Row]:
    """Whether the message was completed under this very lease."""
    return present is not None and present.state is State.DONE and present.token == row.token + 1


def _is_same_decision(present: Row, decided: Row) -> bool:
    """Whether what was just decided is there already, under another id: its answer was lost."""
    same = (present.state, present.token, present.failure) == (decided.state, decided.token, decided.failure)
    return same and present.failure is not None


def _older(than: timedelta) -> dict[str, int]:
    return {"older_ms": int(than.total_seconds() * 1000)}


def _lost(message: MessageId, row: Row) -> LeaseLost:
    return LeaseLost(f"{message} was taken over: token {row.token} is no longer the latest")


def _now_ms() -> int:
    return int(time.time() * 1000)

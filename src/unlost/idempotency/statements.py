"""The ledger's SQL, built once for a store: building a statement costs more than SQLite takes to run it."""

from __future__ import annotations

from sqlalchemy import bindparam, delete, exists, false, func, insert, literal, select, update

from unlost.core.settlement import ENDED, State
from unlost.core.uniqueness import PREFIX
from unlost.database.dialect import DatabaseDialect
from unlost.idempotency.schema import COUNTS, messages

_KEY = messages.c.message == bindparam("key")
_COLUMNS = [column.name for column in messages.columns if column.name not in ("message", "updated_ms")]

#: How many rows one purging transaction removes.
BATCH = 500


class Statements:
    """Everything a :class:`unlost.idempotency.sql.SqlStore` asks; parameters are column names and ``key``.

    Args:
        dialect: Whose clock and whose upsert.
    """

    def __init__(self, dialect: DatabaseDialect) -> None:
        wall, clock = dialect.wall_ms(), dialect.clock()
        leased = messages.c.state == literal(State.LEASED.value, messages.c.state.type)
        columns = {name: bindparam(name, type_=messages.c[name].type) for name in _COLUMNS}
        first = {
            **columns,
            "message": bindparam("key", type_=messages.c.message.type),
            "expires": clock + bindparam("lease", type_=messages.c.expires.type),
            "updated_ms": wall,
        }
        #: ``ON CONFLICT DO NOTHING`` would wait for a holder that is committing; a plain read does not.
        self.insert_first = (
            insert(messages)
            .from_select(list(first), select(*first.values()).where(~exists().where(_KEY)))
            .returning(messages.c.expires)
        )
        self.read = select(messages).where(_KEY)
        self.read_many = select(messages).where(messages.c.message.in_(bindparam("keys", expanding=True)))
        self.read_if_free = select(messages, clock.label("now")).where(_KEY).with_for_update(nowait=True)
        self.read_locked = select(messages).where(_KEY).with_for_update()
        self.held_by = (
            select(messages).where(messages.c.holder == bindparam("of_holder"), leased).with_for_update()
        )
        everything = update(messages).values(**columns, updated_ms=wall)
        self.overwrite = everything.where(_KEY)
        still_ours = (_KEY, messages.c.token == bindparam("held_token"), leased)
        known = {name: value for name, value in columns.items() if name not in COUNTS}
        self.replace = update(messages).values(**known, updated_ms=wall).where(*still_ours)
        self.complete = (
            update(messages)
            .where(*still_ours)
            .values(
                state=State.DONE.value,
                holder=None,
                expires=0.0,
                token=messages.c.token + 1,
                result=bindparam("result"),
                failure=bindparam("failure"),
                updated_ms=wall,
            )
        )
        #: Changes nothing, but whoever runs it first in a transaction is SQLite's one writer from there on.
        self.become_writer = delete(messages).where(false())
        self.mark_sent = (
            update(messages).where(_KEY, messages.c.decision == bindparam("of_decision")).values(sent=1)
        )
        #: A row that its own holder is just committing must not keep the others from being renewed.
        self.renewable = (
            select(messages.c.message)
            .where(messages.c.holder.in_(bindparam("holders", expanding=True)), leased)
            .with_for_update(skip_locked=True)
        )
        left = messages.c.message.startswith(PREFIX, autoescape=True) & (messages.c.expires < clock)
        ended = messages.c.state.in_([state.value for state in ENDED]) | (leased & left)
        old = messages.c.updated_ms < wall - bindparam("older_ms", type_=messages.c.updated_ms.type)
        #: In the order of its index; nothing is locked, and no transaction outlasts a batch.
        self.purgeable = (
            select(messages.c.message).where(ended, old).order_by(messages.c.updated_ms).limit(BATCH)
        )
        self.count_purgeable = select(func.count()).select_from(messages).where(ended, old)
        self.purge = delete(messages).where(
            messages.c.message.in_(bindparam("keys", expanding=True)), ended, old
        )
        self.renew = (
            update(messages)
            .where(messages.c.message.in_(bindparam("keys", expanding=True)), leased)
            .values(expires=clock + bindparam("lease", type_=messages.c.expires.type))
        )

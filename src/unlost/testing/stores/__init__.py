"""Private PostgreSQL, MariaDB and Redis servers for tests.

::

    with start_store("postgresql", environ=os.environ) as server, server.fresh() as url:
        unlost.install(app, topology=..., store=url)

Each is a child process on 127.0.0.1 with a data directory of its own, and ends with this process.
"""

from unlost.testing.stores.server import KINDS, StoreServer, missing, start_store

__all__ = ["KINDS", "StoreServer", "missing", "start_store"]

"""Brokers and stores for the runs of one process: started when first asked for, shared, ended together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from unlost.chaos.runner import Place
from unlost.testing.brokers import Broker, DockerCluster, docker_cluster, start_broker
from unlost.testing.stores import KINDS, StoreServer, start_store


class Places:
    """Where runs take place. Each run gets an empty vhost, and an empty database.

    A broker or store on which a run failed is not used again: nobody knows whether it is whole.

    Args:
        environ: Where brokers come from; see :mod:`unlost.testing.brokers`.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._started: dict[str, tuple[Any, ExitStack]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for what in list(self._started):
            self._end(what)

    @contextmanager
    def place(self, folder: Path, *, nodes: int = 1, store: str | None = None) -> Iterator[Place]:
        """Yield a place for one run.

        Args:
            folder: Of the run; holds its SQLite file if no store is named.
            nodes: 1 for a single broker, wherever it comes from; 3 for a cluster of containers.
            store: ``postgresql``, ``mariadb`` or ``redis`` for a private server, or the URL of an empty
                database; SQLite in the folder when not given.

        Raises:
            HarnessError: A broker or a store could not be had.
        """
        name = "broker" if nodes == 1 else f"cluster of {nodes}"
        with ExitStack() as stack:
            broker, cluster = self._broker(name, nodes, stack)
            server, url = self._store(store, folder, stack)
            vhost = stack.enter_context((broker or cluster).fresh_vhost())  # type: ignore[union-attr]
            if cluster is not None:
                vhost = type(vhost)(vhost.name, cluster.amqp_url(vhost.name), vhost.management_url)
            yield Place(vhost=vhost, broker=broker, cluster=cluster, store=server, store_url=url)

    def _broker(self, name: str, nodes: int, stack: ExitStack) -> tuple[Broker | None, DockerCluster | None]:
        if nodes == 1:
            return stack.enter_context(self._shared(name, lambda: start_broker(environ=self._environ))), None
        return None, stack.enter_context(
            self._shared(name, lambda: docker_cluster(environ=self._environ, size=nodes))
        )

    def _store(self, store: str | None, folder: Path, stack: ExitStack) -> tuple[StoreServer | None, str]:
        if store is None:
            return None, f"sqlite:///{folder / 'store.sqlite'}"
        if store not in KINDS:
            return None, store
        server: StoreServer = stack.enter_context(
            self._shared(store, lambda: start_store(store, environ=self._environ))
        )
        return server, stack.enter_context(server.fresh())

    @contextmanager
    def _shared(self, what: str, start: Callable[[], AbstractContextManager[Any]]) -> Iterator[Any]:
        if what not in self._started:
            with ExitStack() as stack:
                server = stack.enter_context(start())
                self._started[what] = server, stack.pop_all()
        try:
            yield self._started[what][0]
        except BaseException:
            self._end(what)
            raise

    def _end(self, what: str) -> None:
        _, stack = self._started.pop(what)
        stack.close()

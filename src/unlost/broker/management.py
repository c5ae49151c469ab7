"""A thin typed client of RabbitMQ's management HTTP API.

Paths and fields: https://www.rabbitmq.com/docs/http-api-reference. The password lives in the HTTP client's
auth only; it is never part of a URL, a repr or an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from ssl import SSLContext
from typing import Any, Self
from urllib.parse import quote, unquote, urlsplit

import httpx

from unlost.broker import wire
from unlost.errors import (
    AccessRefused,
    BrokerError,
    BrokerUnavailable,
    ConfigurationError,
    DeclarationConflict,
)
from unlost.topology.objects import (
    Binding,
    BrokerObject,
    Exchange,
    OperatorPolicy,
    Policy,
    Queue,
    User,
    Vhost,
)

# Without statistics a listing stays cheap and works where they are switched off; totals are asked for apart.
_CHEAP = {"disable_stats": "true", "enable_queue_totals": "true"}
_SCHEMES = {"amqp": ("http", 15672), "pyamqp": ("http", 15672), "amqps": ("https", 15671)}
_LONGEST_CONNECT = timedelta(seconds=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeStatus:
    """An exchange as the broker has it, and the name of the policy in effect."""

    declared: Exchange
    policy: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatus:
    """A queue as the broker has it.

    Attributes:
        declared: Its name and immutable properties.
        policy: Name of the user policy in effect.
        effective_policy: Settings of user and operator policy, merged; ``None`` where the broker does not
            report them (seen on 3.10 and 4.0).
        leader: The node that leads a quorum queue; ``None`` while there is none.
        state: ``running``, ``minority``, ``down`` or another word of the broker.
        messages: Everything in it: ready, delivered and unacknowledged, waiting for a delayed retry, or
            waiting to be dead-lettered; ``None`` if the broker does not say. Totals are refreshed about
            every 5 s, so a drain check must see 0 for longer than that, with a leader present.
        ready: How many of them could be delivered now; ``None`` as above.
        unacknowledged: How many of them are with consumers; ``None`` as above.
        members: The nodes that hold a copy.
        online: Those of them that are up.
        delivery_limit: In effect on a quorum queue, where the broker tells.
        exclusive: It belongs to one connection and goes with it.
    """

    declared: Queue
    policy: str | None
    effective_policy: Mapping[str, Any] | None
    leader: str | None
    state: str
    messages: int | None
    ready: int | None
    unacknowledged: int | None
    members: tuple[str, ...] = ()
    online: tuple[str, ...] = ()
    delivery_limit: int | None = None
    exclusive: bool = False


def management_url_of(amqp_url: str) -> str:
    """Return where a broker's management API listens by default: same host and user, port 15672 (TLS: 15671).

    Args:
        amqp_url: As Celery takes it; of several separated by ``;`` the first counts.

    Raises:
        ConfigurationError: It is not an AMQP URL.
    """
    first = amqp_url.split(";", 1)[0]
    parts = urlsplit(first)
    if parts.scheme not in _SCHEMES:
        raise ConfigurationError(
            f"a broker URL of scheme {parts.scheme!r} is no AMQP URL; use amqp://user:password@host:port/vhost"
        )
    scheme, port = _SCHEMES[parts.scheme]
    userinfo = parts.netloc.rpartition("@")[0] or "guest:guest"
    return f"{scheme}://{userinfo}@{_bracketed(parts.hostname or 'localhost')}:{port}"


def vhost_of(amqp_url: str) -> str:
    """Return the vhost that an AMQP URL names, as kombu reads it: what follows the first slash, or ``/``."""
    return unquote(urlsplit(amqp_url.split(";", 1)[0]).path[1:]) or "/"


class Management:
    """The management API of one broker, seen from one vhost.

    Every method makes one request, and raises :class:`BrokerUnavailable` if the API cannot be reached or
    does not answer in time, and :class:`AccessRefused` if it refuses the user or the vhost. All writes are
    idempotent, so after an unknown outcome the same call may be made again.

    Args:
        url: ``http://user:password@host:port``, with the path prefix if the API has one.
        vhost: The vhost that all calls are about.
        timeout: The longest wait for an answer; a connection gets at most 5 s of it.
        verify: How to verify the server's certificate, for ``https``.

    Raises:
        ConfigurationError: The URL is not an HTTP URL.
    """

    def __init__(
        self,
        url: str,
        vhost: str,
        timeout: timedelta = timedelta(seconds=10),
        *,
        verify: SSLContext | bool = True,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(
                f"a management URL of scheme {parts.scheme!r} cannot be used; use http://user:password@host:15672"
            )
        self.vhost = vhost
        self._user = unquote(parts.username or "guest")
        self._address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        self._client = httpx.Client(
            auth=(self._user, unquote(parts.password or "guest")),
            timeout=httpx.Timeout(
                timeout.total_seconds(), connect=min(timeout, _LONGEST_CONNECT).total_seconds()
            ),
            verify=verify,
            trust_env=False,  # the environment is read in one place, and a proxy is never meant for a broker
        )

    def __repr__(self) -> str:
        return f"Management({self._address!r}, vhost={self.vhost!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def version(self) -> tuple[int, int]:
        """Return the broker's major and minor version."""
        text = str(self._json("GET", "overview")["rabbitmq_version"])
        found = re.match(r"(\d+)\.(\d+)", text)
        if found is None:
            raise BrokerError(f"{self._address} reports the version {text!r}, which cannot be read")
        return int(found[1]), int(found[2])

    def exchanges(self) -> list[ExchangeStatus]:
        """Return all exchanges."""
        return [_exchange_status(each) for each in self._list("exchanges")]

    def queues(self) -> list[QueueStatus]:
        """Return all queues with their totals."""
        return [_queue_status(each) for each in self._list("queues")]

    def queue(self, name: str) -> QueueStatus | None:
        """Return one queue with its totals, or ``None`` if it does not exist.

        Taken from the listing, because RabbitMQ 3.10 tells neither policy nor totals of a single queue.
        """
        return next((status for status in self.queues() if status.declared.name == name), None)

    def bindings(self) -> list[Binding]:
        """Return all bindings but those to the default exchange, which the broker makes itself."""
        return [wire.binding(each) for each in self._list("bindings") if each["source"]]

    def policies(self) -> list[Policy]:
        """Return all user policies."""
        return [wire.policy(each) for each in self._list("policies")]

    def operator_policies(self) -> list[OperatorPolicy]:
        """Return all operator policies."""
        return [wire.operator_policy(each) for each in self._list("operator-policies")]

    def objects(self) -> list[BrokerObject]:
        """Return all that an application's topology is compared with, in four requests."""
        exchanges = (status.declared for status in self.exchanges())
        queues = (status.declared for status in self.queues())
        return [*exchanges, *queues, *self.bindings(), *self.policies()]

    def pending_letters(self, name: str) -> int | None:
        """Return how many dead letters of a queue wait for their confirm; ``None`` if the broker is silent.

        Taken from statistics, which are refreshed every 5 s.
        """
        found = self.ask(self._path("queues", name)) or {}
        pending = found.get("messages_dlx")
        return None if pending is None else int(pending)

    def close_connections(self, reason: str) -> int:
        """Close all connections to this vhost, as an operator does; the broker lists them a little late.

        Args:
            reason: What the clients are told.

        Returns:
            How many were closed.
        """
        names = [
            each["name"] for each in self._body(self._request("GET", self._path("vhosts") + "/connections"))
        ]
        for name in names:
            path = f"connections/{quote(name, safe='')}"
            response = self._request("DELETE", path, headers={"X-Reason": reason})
            if response.status_code != httpx.codes.NOT_FOUND:
                self._check(response)
        return len(names)

    def ask(self, path: str) -> Any:
        """Return the answer to a GET of any path below ``/api``; ``None`` if there is no such thing.

        An unhealthy answer (503) is an answer.
        """
        response = self._request("GET", path)
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        if response.status_code == httpx.codes.SERVICE_UNAVAILABLE and _is_json(response):
            return response.json()
        return self._body(response)

    def path(self, kind: str, *names: str) -> str:
        """Return the path of something in this vhost, for :meth:`ask`."""
        return self._path(kind, *names)

    def put(self, wanted: BrokerObject) -> None:
        """Create an object, or change what can be changed; without effect if it is there as wanted.

        Raises:
            DeclarationConflict: An exchange or queue exists with other immutable properties.
            BrokerError: The broker refuses it for another reason, which the message carries.
        """
        method = "POST" if isinstance(wanted, Binding) else "PUT"
        self._write(method, wire.path_of(wanted, self.vhost), wire.body_of(self._filled_in(wanted)))

    def put_exchange(self, exchange: Exchange) -> None:
        """Declare an exchange; raises as :meth:`put`."""
        self.put(exchange)

    def put_queue(self, queue: Queue) -> None:
        """Declare a queue; raises as :meth:`put`."""
        self.put(queue)

    def put_binding(self, binding: Binding) -> None:
        """Bind a queue or exchange to an exchange; raises as :meth:`put`."""
        self.put(binding)

    def put_policy(self, policy: Policy) -> None:
        """Set a policy, which takes effect a moment later; raises as :meth:`put`."""
        self.put(policy)

    def delete(self, unwanted: BrokerObject) -> None:
        """Delete an object; without effect if it is not there. Messages in a queue go with it.

        Raises:
            BrokerError: The broker refuses it.
        """
        path = wire.path_of(unwanted, self.vhost)
        if isinstance(unwanted, Binding):
            self._delete_binding(unwanted, path)
        else:
            self._delete(path)

    def _delete_binding(self, binding: Binding, path: str) -> None:
        response = self._request("GET", path)
        if response.status_code == httpx.codes.NOT_FOUND:  # one of its ends is gone, and it with it
            return
        for found in self._body(response):
            if wire.binding(found).key == binding.key:
                self._delete(f"{path}/{quote(found['properties_key'], safe='')}")

    def _delete(self, path: str) -> None:
        response = self._request("DELETE", path)
        if response.status_code != httpx.codes.NOT_FOUND:
            self._check(response)

    def _filled_in(self, wanted: BrokerObject) -> BrokerObject:
        """Return an object with what it leaves open as it is now, because a PUT replaces all of it."""
        if isinstance(wanted, Vhost):
            there = self.ask(self._path("vhosts"))
            return wanted.filled_in(wire.vhost(there)) if there else wanted
        if isinstance(wanted, User) and wanted.password is None and wanted.password_hash is None:
            there = self.ask(wire.path_of(wanted, self.vhost))
            return replace(wire.user(there), tags=wanted.tags) if there else wanted
        return wanted

    def _path(self, kind: str, *names: str) -> str:
        return "/".join((kind, *(quote(name, safe="") for name in (self.vhost, *names))))

    def _list(self, kind: str) -> list[dict[str, Any]]:
        response = self._request("GET", self._path(kind), params=_CHEAP)
        if response.status_code == httpx.codes.NOT_FOUND:
            raise AccessRefused(
                f"vhost {self.vhost!r} does not exist at {self._address}; "
                "correct the broker URL, or create it with 'rabbitmqctl add_vhost'"
            )
        return list(self._body(response))

    def _json(self, method: str, path: str) -> Any:
        return self._body(self._request(method, path))

    def _write(self, method: str, path: str, body: Mapping[str, Any]) -> None:
        self._check(self._request(method, path, json=dict(body)))

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._client.request(method, f"{self._address}/api/{path}", **options)
        except httpx.TransportError as exc:
            raise BrokerUnavailable(
                f"the management API at {self._address} cannot be reached ({type(exc).__name__}: {exc}); "
                "check host and port, and that the rabbitmq_management plugin is enabled"
            ) from exc
        if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise self._refused(response)
        return response

    def _body(self, response: httpx.Response) -> Any:
        self._check(response)
        try:
            return response.json()
        except ValueError as exc:
            raise self._stranger() from exc

    def _check(self, response: httpx.Response) -> None:
        """Raise what a status other than success means."""
        if response.is_success:
            return
        if not _is_json(response):
            raise self._stranger()
        reason = f"{self._what(response)}: {_reason_of(response)}"
        if response.is_server_error:
            raise BrokerUnavailable(f"{reason}; try again when the broker is healthy")
        if "inequivalent arg" in reason:
            raise DeclarationConflict(f"{reason}; drain and delete the object, then apply again")
        raise BrokerError(reason)

    def _stranger(self) -> BrokerUnavailable:
        return BrokerUnavailable(
            f"{self._address} does not answer as RabbitMQ's management API does; check the management URL"
        )

    def _refused(self, response: httpx.Response) -> AccessRefused:
        return AccessRefused(
            f"{self._what(response)}: user {self._user!r} is refused ({_reason_of(response)}); check user, "
            f"password and the permissions on vhost {self.vhost!r} (policies need the tag 'policymaker')"
        )

    def _what(self, response: httpx.Response) -> str:
        path = unquote(response.request.url.path.partition("/api/")[2])
        return f"{self._address} answered {response.status_code} to {response.request.method} {path}"


def _reason_of(response: httpx.Response) -> str:
    try:
        text = str(response.json()["reason"])
    except (ValueError, KeyError, TypeError):
        text = response.text or response.reason_phrase
    return " ".join(text.split())[:500]


def _is_json(response: httpx.Response) -> bool:
    return str(response.headers.get("content-type", "")).startswith("application/json")


def _exchange_status(found: Mapping[str, Any]) -> ExchangeStatus:
    return ExchangeStatus(declared=wire.exchange(found), policy=found.get("policy"))


def _queue_status(found: Mapping[str, Any]) -> QueueStatus:
    return QueueStatus(
        declared=wire.queue(found),
        policy=found.get("policy"),
        effective_policy=found.get("effective_policy_definition"),
        leader=found.get("leader"),
        state=found.get("state", "unknown"),
        messages=found.get("messages"),
        ready=found.get("messages_ready"),
        unacknowledged=found.get("messages_unacknowledged"),
        members=tuple(found.get("members") or ()),
        online=tuple(found.get("online") or ()),
        delivery_limit=found.get("delivery_limit"),
        exclusive=bool(found.get("exclusive")),
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host

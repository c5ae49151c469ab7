"""The few questions a broker is asked before tests may use it: over AMQP and the management API."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import amqp
import httpx

from unlost.errors import AccessRefused, BrokerUnavailable
from unlost.testing.brokers.endpoint import Endpoint

PATIENCE = timedelta(seconds=4)
"""For one answer. Connecting and one silent answer together stay below 10 s."""


def check_amqp(endpoint: Endpoint, patience: timedelta = PATIENCE) -> None:
    """Open and close a connection to the endpoint's vhost.

    Raises:
        BrokerUnavailable: Nobody listens, or nobody answers within ``patience``.
        AccessRefused: Wrong user, password or vhost.
    """
    connection = amqp.Connection(
        host=endpoint.place,
        userid=endpoint.user,
        password=endpoint.password,
        virtual_host=endpoint.path,
        ssl=_tls_options(endpoint),
        connect_timeout=patience.total_seconds(),
        read_timeout=patience.total_seconds(),
        write_timeout=patience.total_seconds(),
    )
    try:
        connection.connect()
        connection.close()
    except (amqp.AccessRefused, amqp.NotAllowed) as exc:
        # 403 ends a failed login, 530 a vhost that is missing or closed to the user
        # (https://www.rabbitmq.com/docs/access-control).
        raise AccessRefused(
            f"the broker at {endpoint.place} refused user {endpoint.user!r} on vhost {endpoint.path!r}: "
            "check the user, the password, the vhost and the user's permissions on it"
        ) from exc
    except (OSError, amqp.AMQPError) as exc:
        raise BrokerUnavailable(
            f"no AMQP broker answers at {endpoint.place} ({type(exc).__name__}): "
            "check the host and port, and that RabbitMQ runs there"
        ) from exc
    finally:
        connection.collect()


def _tls_options(endpoint: Endpoint) -> dict[str, Any] | bool:
    if not endpoint.tls:
        return False
    return {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": endpoint.host}


class Admin:
    """What a test rig asks of RabbitMQ's management API: the version, and vhosts to come and go.

    Args:
        endpoint: Where the API listens and with which credentials.
        patience: For connecting and for each answer.
        hint: What to do when nobody answers, appended to the error.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        patience: timedelta = PATIENCE,
        hint: str = "check that the plugin rabbitmq_management is enabled",
    ) -> None:
        self._endpoint = endpoint
        self._patience = patience
        self._hint = hint

    def version(self) -> tuple[int, int, int]:
        """Return the broker's version.

        Raises:
            BrokerUnavailable: No answer, or one that is not RabbitMQ's.
            AccessRefused: Wrong credentials, or the user has no tag that admits it to the API.
        """
        response = self._request("GET", "overview")
        try:
            numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", response.json()["rabbitmq_version"])
        except (ValueError, KeyError, TypeError) as exc:
            raise self._not_rabbitmq() from exc
        if numbers is None:
            raise self._not_rabbitmq()
        major, minor, patch = (int(number) for number in numbers.groups())
        return major, minor, patch

    def running_nodes(self) -> int:
        """Return how many nodes of the cluster this node sees running; raises as :meth:`version`."""
        try:
            return sum(bool(node["running"]) for node in self._request("GET", "nodes").json())
        except (ValueError, KeyError, TypeError) as exc:
            raise self._not_rabbitmq() from exc

    def create_vhost(self, name: str, user: str) -> None:
        """Create a vhost and give ``user`` every permission on it; both are idempotent.

        Raises:
            BrokerUnavailable: No answer: the vhost may exist or not.
            AccessRefused: The user lacks the tag ``administrator``.
        """
        vhost = quote(name, safe="")
        self._request("PUT", f"vhosts/{vhost}", {})
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self._request("PUT", f"permissions/{vhost}/{quote(user, safe='')}", everything)

    def delete_vhost(self, name: str) -> None:
        """Delete a vhost with all it holds; one that is gone already is fine.

        Raises:
            BrokerUnavailable: No answer: the vhost may still exist.
            AccessRefused: The user lacks the tag ``administrator``.
        """
        self._request("DELETE", f"vhosts/{quote(name, safe='')}", absent_is_fine=True)

    def _request(
        self, method: str, path: str, body: dict[str, str] | None = None, *, absent_is_fine: bool = False
    ) -> httpx.Response:
        with self._translated_errors():
            response = self._send(method, path, body)
        if response.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
            raise AccessRefused(
                f"the management API at {self._endpoint.place} refused user {self._endpoint.user!r}: check "
                "the password, and that the user has the tag administrator (rabbitmqctl set_user_tags)"
            )
        if response.is_error and not (absent_is_fine and response.status_code == httpx.codes.NOT_FOUND):
            raise BrokerUnavailable(
                f"the management API at {self._endpoint.place} answered {response.status_code} "
                f"to {method} {path}: {self._hint}"
            )
        return response

    def _send(self, method: str, path: str, body: dict[str, str] | None) -> httpx.Response:
        # Credentials travel as auth, not in the URL, which httpx puts into its errors and logs.
        # Proxies from the environment are for the internet, not for a broker under test.
        with httpx.Client(
            auth=(self._endpoint.user, self._endpoint.password),
            timeout=self._patience.total_seconds(),
            trust_env=False,
        ) as client:
            return client.request(method, f"{self._base_url()}/api/{path}", json=body)

    def _base_url(self) -> str:
        prefix = f"/{self._endpoint.path}" if self._endpoint.path else ""
        return f"{self._endpoint.scheme}://{self._endpoint.place}{prefix}"

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as exc:
            raise BrokerUnavailable(
                f"the management API does not answer at {self._endpoint.place} "
                f"({type(exc).__name__}): {self._hint}"
            ) from exc

    def _not_rabbitmq(self) -> BrokerUnavailable:
        return BrokerUnavailable(
            f"what answers at {self._endpoint.place} is not RabbitMQ's management API: {self._hint}"
        )

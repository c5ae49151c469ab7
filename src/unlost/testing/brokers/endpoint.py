"""Where a broker listens and with which credentials, without ever showing the password."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from urllib.parse import quote, unquote, urlsplit

from unlost.errors import ConfigurationError

_PORTS = {"amqp": 5672, "amqps": 5671, "http": 15672, "https": 15671}


@dataclass(frozen=True)
class Endpoint:
    """One listener of a broker.

    Attributes:
        scheme: ``amqp``, ``amqps``, ``http`` or ``https``.
        host: Name or address; an IPv6 address without brackets.
        port: TCP port.
        user: User name, decoded.
        password: Password, decoded; not part of the ``repr``.
        path: For AMQP the vhost, decoded; for HTTP the prefix of the management API, or empty.
        query: What followed the question mark, passed on as it came.
    """

    scheme: str
    host: str
    port: int
    user: str
    password: str = field(repr=False)
    path: str = ""
    query: str = field(default="", repr=False)

    @property
    def place(self) -> str:
        """``host:port``, fit for messages."""
        return f"{self._bracketed_host()}:{self.port}"

    @property
    def tls(self) -> bool:
        """Whether the listener speaks TLS."""
        return self.scheme in {"amqps", "https"}

    def url(self, path: str | None = None) -> str:
        """Render the URL **with the password**.

        Args:
            path: A vhost to use instead of :attr:`path`; ``"/"`` is RabbitMQ's default vhost and
                becomes ``%2F`` (https://www.rabbitmq.com/docs/uri-spec).
        """
        segment = self.path if path is None else path
        keep = "/" if self.scheme.startswith("http") else ""
        tail = f"/{quote(segment, safe=keep)}" if segment else ""
        query = f"?{self.query}" if self.query else ""
        credentials = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"
        return f"{self.scheme}://{credentials}@{self.place}{tail}{query}"

    def management(self) -> Endpoint:
        """Guess the management listener of this AMQP listener: same host, same user, usual port."""
        scheme = "https" if self.tls else "http"
        return replace(self, scheme=scheme, port=_PORTS[scheme], path="", query="")

    def _bracketed_host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


def parse_endpoint(url: str, setting: str, schemes: tuple[str, ...]) -> Endpoint:
    """Read a URL.

    User and password default to RabbitMQ's ``guest``, a missing vhost is ``/``.

    Args:
        url: The URL; special characters in user, password and vhost are percent-encoded.
        setting: The variable that holds it, for the error.
        schemes: Those allowed.

    Raises:
        ConfigurationError: It is not such a URL. The message does not repeat it: it holds a password.
    """
    wrong = ConfigurationError(
        f"{setting} is not a URL of the form {schemes[0]}://user:password@host:port/…; "
        "percent-encode special characters in user and password"
    )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        # "from None", because urlsplit's own message quotes pieces of the password.
        raise wrong from None
    if parts.scheme not in schemes or not host:
        raise wrong
    path = unquote(parts.path.removeprefix("/")).rstrip("/" if parts.scheme.startswith("http") else "")
    return Endpoint(
        scheme=parts.scheme,
        host=host,
        port=port or _PORTS[parts.scheme],
        user=unquote(parts.username or "guest"),
        password=unquote(parts.password or "guest"),
        path=path or ("/" if parts.scheme.startswith("amqp") else ""),
        query=parts.query,
    )

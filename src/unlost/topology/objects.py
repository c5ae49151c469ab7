"""What a broker holds, as frozen values: exchanges, queues, bindings and policies.

Every object knows its ``kind`` and ``key``; the two identify it within a vhost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

Value = str | int | bool
DestinationType = Literal["queue", "exchange"]
ApplyTo = Literal["queues", "exchanges"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """An exchange; ours are durable and leave what they can to policies."""

    kind: ClassVar[str] = "exchange"

    name: str
    type: str = "topic"
    durable: bool = True
    auto_delete: bool = False
    internal: bool = False
    arguments: Mapping[str, Value] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Return what identifies it among exchanges."""
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A queue; ours are durable and their arguments are only what no policy can set."""

    kind: ClassVar[str] = "queue"

    name: str
    durable: bool = True
    auto_delete: bool = False
    arguments: Mapping[str, Value] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Return what identifies it among queues."""
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """A route from an exchange to a queue or to another exchange."""

    kind: ClassVar[str] = "binding"

    source: str
    destination: str
    destination_type: DestinationType = "queue"
    routing_key: str = ""
    arguments: Mapping[str, Value] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Return what identifies it among bindings with the same arguments."""
        arrow = "->" if self.destination_type == "queue" else "=>"
        return f"{self.source} {arrow} {self.destination} [{self.routing_key}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Settings for every object whose name matches; at most one policy is in effect per object."""

    kind: ClassVar[str] = "policy"

    name: str
    pattern: str
    apply_to: ApplyTo
    definition: Mapping[str, Value] = field(default_factory=dict)
    priority: int = 0

    @property
    def key(self) -> str:
        """Return what identifies it among policies."""
        return self.name

    def governs(self, candidate: Exchange | Queue) -> bool:
        """Tell whether its pattern matches an object of the kind it applies to."""
        return self.apply_to == f"{candidate.kind}s" and re.search(self.pattern, candidate.name) is not None


BrokerObject = Exchange | Queue | Binding | Policy

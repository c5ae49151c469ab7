"""Generated topologies of the full form, of what every supported version of the broker takes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from hypothesis import strategies as st

from unlost.topology.full_form import (
    BindingForm,
    ExchangeForm,
    Objects,
    PermissionForm,
    PolicyForm,
    VhostForm,
)
from unlost.topology.model import Topology
from unlost.topology.queue_forms import ClassicQueue, QuorumQueue, StreamQueue

# Characters that mean something in a URL, a regular expression, YAML or a binding's properties key.
NAMES = ["a", "a.b", "w q", "p+q", "50%", "x/y", "ü", "~", "key: #", "null", "[z]"]
_hours = st.integers(1, 1000).map(lambda hours: timedelta(hours=hours))
_counts = st.integers(1, 10_000)
_maybe = st.none


def _optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(_maybe(), strategy)


_limited = {
    "message_ttl": _optional(_hours),
    "expires": _optional(_hours),
    "max_length": _optional(_counts),
    "max_length_bytes": _optional(_counts),
    "overflow": _optional(st.sampled_from(["drop-head", "reject-publish"])),
    "dead_letter_exchange": _optional(st.sampled_from(NAMES)),
    "single_active_consumer": _optional(st.booleans()),
}
quorum_queues = st.builds(
    QuorumQueue,
    **_limited,
    delivery_limit=_optional(st.integers(0, 100)),
    dead_letter_strategy=_optional(st.sampled_from(["at-most-once", "at-least-once"])),
    initial_group_size=_optional(st.integers(1, 3)),
    arguments=st.one_of(st.just({}), st.just({"x-own": "kept"})),
)
classic_queues = st.builds(
    ClassicQueue, **_limited, type=st.just("classic"), max_priority=_optional(st.integers(1, 5))
)
stream_queues = st.builds(
    StreamQueue,
    type=st.just("stream"),
    max_age=_optional(st.sampled_from(["1D", "12h"])),
    max_length_bytes=_optional(_counts),
)
any_queue = st.one_of(quorum_queues, classic_queues, stream_queues)
exchanges = st.builds(
    ExchangeForm,
    type=st.sampled_from(["direct", "fanout", "topic", "headers"]),
    internal=st.booleans(),
    alternate_exchange=_optional(st.sampled_from(NAMES)),
)
policies = st.builds(
    PolicyForm,
    pattern=st.sampled_from(["^a", "^x/y$", "q", "^none$"]),
    apply_to=st.just("queues"),
    priority=st.integers(0, 9),
    definition=st.fixed_dictionaries(
        {"max-length": _counts},
        optional={"message-ttl": st.integers(10**6, 10**8), "delivery-limit": _counts},
    ),
)


@st.composite
def full_topologies(draw: st.DrawFn) -> Topology:
    """Draw a topology of objects, all of which a fresh vhost takes."""
    queues = draw(st.dictionaries(st.sampled_from(NAMES), any_queue, max_size=4))
    sources = draw(st.dictionaries(st.sampled_from(NAMES), exchanges, max_size=4))
    objects = Objects(
        vhost=draw(
            st.builds(
                VhostForm,
                description=_optional(st.sampled_from(["the shop"])),
                limits=st.sampled_from([{}, {"max-queues": 100}]),
            )
        ),
        exchanges=sources,
        queues=queues,
        bindings=tuple(_bindings(draw, list(sources), list(queues))),
        policies=draw(st.dictionaries(st.sampled_from(["p", "p/2", "p 3"]), policies, max_size=3)),
        operator_policies=draw(
            st.dictionaries(
                st.just("o"),
                st.builds(PolicyForm, pattern=st.just("^a"), definition=st.just({"max-length": 7})),
                max_size=1,
            )
        ),
        permissions=draw(
            st.dictionaries(
                st.just("nobody"), st.builds(PermissionForm, read=st.sampled_from(["^a", ""])), max_size=0
            )
        ),
    )
    return Topology(objects=objects)


def _bindings(draw: st.DrawFn, sources: list[str], queues: list[str]) -> list[BindingForm]:
    if not sources or not queues:
        return []
    drawn = draw(
        st.lists(
            st.builds(
                BindingForm,
                source=st.sampled_from([*sources, "amq.topic"]),
                destination=st.sampled_from(queues),
                routing_key=st.sampled_from(["", "a.#", "x y/~", "*"]),
                arguments=st.sampled_from([{}, {"x-match": "all", "kind": "paid", "n": 1}]),
            ),
            max_size=4,
        )
    )
    drawn += draw(
        st.lists(
            st.builds(
                BindingForm,
                source=st.sampled_from(sources),
                destination=st.sampled_from(sources),
                destination_type=st.just("exchange"),
                routing_key=st.sampled_from(["", "k"]),
            ),
            max_size=2,
        )
    )
    unique: dict[str, BindingForm] = {each.model_dump_json(): each for each in drawn}
    return list(unique.values())

"""The command line: one module per noun, imported when it is used."""

from __future__ import annotations

from unlost.cli.lazy import LazyGroup

# Name: (where it lives, one line for --help, which must not import it).
_COMMANDS = {
    "demo": ("unlost.cli.demo:demo", "Kill workers and the broker under load and judge what came of it."),
    "idempotency": ("unlost.cli.idempotency:idempotency", "Look into the store of messages and keys."),
    "topology": ("unlost.cli.topology:topology", "Create exchanges, queues and policies as declared."),
}

main = LazyGroup(
    "unlost",
    _COMMANDS,
    help="Reliable Celery on RabbitMQ. What changes something is a dry run without --yes.",
)

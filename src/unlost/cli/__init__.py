"""The command line: one module per noun, imported when it is used."""

from __future__ import annotations

from unlost.cli.lazy import LazyGroup

# Name: (where it lives, one line for --help, which must not import it).
_COMMANDS = {
    "breaker": ("unlost.cli.breaker:breaker", "See which dependencies are down; pause and release them."),
    "chaos": ("unlost.cli.chaos:chaos", "Injure an application under load and judge what came of it."),
    "claims": ("unlost.cli.claims:claims", "Remove stored payloads that no message needs any more."),
    "demo": ("unlost.cli.demo:demo", "Kill workers and the broker under load and judge what came of it."),
    "dlq": ("unlost.cli.dlq:dlq", "See dead letters, understand them, and send them back."),
    "doctor": ("unlost.cli.doctor:doctor", "Does this build fit its broker, its store and what waits?"),
    "idempotency": ("unlost.cli.idempotency:idempotency", "Look into the store of messages and keys."),
    "outbox": ("unlost.cli.outbox:outbox", "Publish what transactions have committed; show what is left."),
    "topology": ("unlost.cli.topology:topology", "Create exchanges, queues and policies as declared."),
}

main = LazyGroup(
    "unlost",
    _COMMANDS,
    help="Reliable Celery on RabbitMQ. What changes something is a dry run without --yes.",
)

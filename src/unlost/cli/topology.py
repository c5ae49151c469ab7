"""``unlost topology``: what a topology needs, whether it is safe, and bringing a broker to it."""

from __future__ import annotations

from unlost.cli.lazy import LazyGroup

_HERE = "unlost.cli.topologies"
_COMMANDS = {
    "apply": (f"{_HERE}.apply:apply_command", "Bring a broker to a topology."),
    "export": (f"{_HERE}.export:export_command", "Write a topology as definitions, picture, table or YAML."),
    "import": (f"{_HERE}.imports:import_command", "Write what a broker has as a topology."),
    "lint": (f"{_HERE}.lint:lint_command", "Find what in a topology could lose messages."),
    "plan": (f"{_HERE}.plan:plan_command", "Compare a topology with a broker; exit 1 if they differ."),
    "schema": (f"{_HERE}.schema:schema_command", "Print the JSON Schema of a topology's YAML, for editors."),
    "verify": (f"{_HERE}.verify:verify_command", "Look at what a running broker makes of a topology."),
}

topology = LazyGroup(
    "topology", _COMMANDS, help="Exchanges, queues and policies as code: lint, plan, apply, verify."
)

"""How a plan is shown to people: grouped by object, coloured by class, each change with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.markup import escape

from unlost.topology.plan import Action, Plan, Step

# What a step looks like, and what has to be done about it.
_LOOKS = {
    Action.CREATE: ("+", "green", "create"),
    Action.UPDATE: ("~", "yellow", "update in place"),
    Action.UNBIND: ("-", "magenta", "unbind (needs --allow-unbind)"),
    Action.IMMUTABLE: ("!", "red", "immutable: needs migrate"),
    Action.DESTRUCTIVE: (
        "-",
        "red",
        "destructive (needs --allow-destroy; refused while messages are inside)",
    ),
    Action.OVERRULED: ("!", "red", "overruled: apply cannot change what is not declared"),
    Action.UNMANAGED: ("?", "dim", "unmanaged (reported only)"),
}
_KINDS = (
    "vhost",
    "vhost limit",
    "user",
    "user limit",
    "permission",
    "topic permission",
    "operator policy",
    "parameter",
    "policy",
    "exchange",
    "queue",
    "binding",
)
_MANY = 20


def show_plan(found: Plan, console: Console, *, unmanaged: bool) -> None:
    """Print a plan.

    Args:
        found: The plan.
        console: Where to print.
        unmanaged: List what is not declared, instead of counting it.
    """
    foreign = found.of(Action.UNMANAGED)
    steps = found.steps if unmanaged or len(foreign) <= _MANY else found.drift
    for kind in _KINDS:
        group = [step for step in steps if step.object.kind == kind]
        if group:
            console.print(f"[bold]{kind}[/bold]")
            for line in lines_of(group):
                console.print(line, soft_wrap=True)
    if len(steps) < len(found.steps):
        counted = ", ".join(f"{count} {kind}" for kind, count in Counter(_kinds(foreign)).items())
        console.print(f"[dim]unmanaged: {counted} (--unmanaged lists them)[/dim]")
    for kind, reason in found.unread.items():
        console.print(f"[yellow]{kind}: could not be read: {escape(reason)}[/yellow]", soft_wrap=True)
    console.print(summary_of(found), soft_wrap=True)


def lines_of(steps: Iterable[Step]) -> Iterator[str]:
    """Yield the lines of one group, in rich's markup."""
    for step in steps:
        sign, colour, meaning = _LOOKS[step.action]
        if step.deletes and step.action is Action.DESTRUCTIVE:
            meaning = f"delete: {meaning}"
        yield f"  [{colour}]{sign} {escape(step.object.key) or '(this one)'}  {meaning}[/{colour}]"
        if step.action is not Action.CREATE:
            yield from (f"      {escape(reason)}" for reason in step.reasons)
        for risk in step.risks:
            yield f"      [red]queue {escape(risk.queue)}: {escape(risk.loss)}[/red]"


def summary_of(found: Plan) -> str:
    """Return one line that counts the steps of each class."""
    counts = Counter(step.action for step in found.steps)
    if not found.drift:
        return f"The broker has all of it: {found.unchanged} objects, nothing to change."
    said = [f"{counts[action]} {action}" for action in Action if counts[action]]
    return f"{', '.join(said)}; {found.unchanged} unchanged."


def _kinds(steps: Iterable[Step]) -> Iterator[str]:
    return (step.object.kind for step in steps)

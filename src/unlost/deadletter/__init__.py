"""Dead letters: see them, understand them, send them back, and prove it.

:class:`DeadLetters` is where to begin; everything else here is a value that it takes or returns.
"""

from __future__ import annotations

from unlost.deadletter.desk import DeadLetters
from unlost.deadletter.disposition import Redrive, Verdict, edited
from unlost.deadletter.group import FACETS, Group, group
from unlost.deadletter.letter import DeadLetter
from unlost.deadletter.metrics import LetterFigures, exposition, figures_of, redrive_samples
from unlost.deadletter.move import Report
from unlost.deadletter.pace import Pace
from unlost.deadletter.redact import Redactor
from unlost.deadletter.select import Selection

__all__ = [
    "FACETS",
    "DeadLetter",
    "DeadLetters",
    "Group",
    "LetterFigures",
    "Pace",
    "Redactor",
    "Redrive",
    "Report",
    "Selection",
    "Verdict",
    "edited",
    "exposition",
    "figures_of",
    "group",
    "redrive_samples",
]

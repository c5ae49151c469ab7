"""What two failures have in common: a short name for the kind of an exception.

Numbers, ids, quoted values and addresses differ from letter to letter and are left out of the message;
of the traceback the innermost frames count, by file and function and without line numbers, so that an
unrelated edit above them makes no new group.
"""

from __future__ import annotations

import hashlib
import re

#: How many of the innermost frames tell one failure from another.
FRAMES = 4

#: Text beyond this is not looked at: a message may hold a whole document.
LONGEST = 2000

#: As Python prints a frame; begins with plain text, which a search finds quickly.
_FRAME = re.compile(r'  File "(?P<file>[^"\n]+)", line \d+, in (?P<function>.+)')
_VARIABLE = re.compile(
    r"""
      '[^']*' | "[^"]*"                                                   # quoted values
    | \b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b    # UUIDs
    | \b0x[0-9a-f]+\b                                                     # addresses
    | \b[0-9a-f]*[0-9][0-9a-f]{7,}\b                                      # hashes and other hex ids
    | [+-]?\d+(?:[.,:]\d+)*                                               # numbers and times
    """,
    re.VERBOSE | re.IGNORECASE,
)


def fingerprint(exception_type: str, message: str, traceback: str) -> str:
    """Return 12 hex digits that are equal for failures of one kind.

    Args:
        exception_type: Its dotted name.
        message: What it said.
        traceback: As Python prints it; may be cut at the front.
    """
    parts = [exception_type, normalized(message), *frames(traceback)]
    return hashlib.sha256("\0".join(parts).encode(errors="replace")).hexdigest()[:12]


def normalized(message: str) -> str:
    """Return a message with everything that varies between two occurrences replaced by ``#``."""
    return " ".join(_VARIABLE.sub("#", message[:LONGEST]).split())


def frames(traceback: str) -> list[str]:
    """Return the innermost frames as ``file:function``, the innermost last."""
    found = _FRAME.findall(traceback)[-FRAMES:]
    return [f"{file.rpartition('/')[2]}:{function}" for file, function in found]

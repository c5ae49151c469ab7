"""Declares nothing, as Dramatiq declares for itself, and says which queue holds letters."""

from __future__ import annotations

import json
import sys

from benchmarks.dramatiq_shop.shop import LETTERS, broker

if __name__ == "__main__":
    # Else the queue of letters is there only when something was sent.
    broker.declare_queue("default", ensure=True)
    broker.close()
    sys.stdout.write(json.dumps([LETTERS]))

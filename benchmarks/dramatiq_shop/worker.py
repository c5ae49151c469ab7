"""A worker of Dramatiq under the kit's supervision; it takes what the kit's own worker takes."""

from __future__ import annotations

import argparse
import os
import sys
import threading

from dramatiq import cli

from benchmarks.dramatiq_shop import HISTORY, NAME
from unlost.chaos.worker import die_with_the_run

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("app", "workload", "options", "history", "name", "concurrency"):
        parser.add_argument(f"--{name}")
    given = parser.parse_args()
    # Dramatiq imports the shop, which records if it finds these.
    os.environ |= {HISTORY: given.history, NAME: given.name}
    threading.Thread(target=die_with_the_run, args=(os.getpid(),), daemon=True).start()
    arguments = ["benchmarks.dramatiq_shop.shop", "--processes", given.concurrency, "--threads", "1"]
    sys.exit(cli.main(cli.make_argument_parser().parse_args(arguments)))

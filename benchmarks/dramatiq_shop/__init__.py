"""The shop on Dramatiq, for the comparison; each module but the shop is a program of a chaos run."""

#: Where the worker's processes record, and under which name.
HISTORY, NAME = "DRAMATIQ_HISTORY", "DRAMATIQ_NAME"

"""Stores of the message ledger: who holds a message, how its attempts ended, whether it is done."""

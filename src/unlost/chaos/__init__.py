"""Chaos runs: load, nemesis, heal, drain, check."""

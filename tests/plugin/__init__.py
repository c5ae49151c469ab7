"""Tests: the pytest plugin."""

"""Fixtures and options that every test may use; the logic is in :mod:`tests.support`."""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests.support import brokers
from tests.support.brokers import broker, own_broker, vhost
from tests.support.brokers import fail_skipped as pytest_runtest_makereport
from tests.support.brokers import parametrize as pytest_generate_tests
from tests.support.lossmodes import fixtures as lossmodes
from tests.support.lossmodes.fixtures import own_stage, stage
from tests.support.stores import database_url, server_url, store_servers

__all__ = [
    "broker",
    "database_url",
    "own_broker",
    "own_stage",
    "pytest_generate_tests",
    "pytest_runtest_makereport",
    "server_url",
    "stage",
    "store_servers",
    "vhost",
]

# How long an example takes says nothing on a shared machine, and no test is about it.
settings.register_profile("unlost", deadline=None)
settings.load_profile("unlost")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the fixtures."""
    brokers.add_options(parser)
    lossmodes.add_options(parser)

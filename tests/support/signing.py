"""Keys for tests of signatures."""

from __future__ import annotations

import json

from unlost.config import Signing

SECRET = "s3cret-" * 5
KEYS = {"k1": SECRET}

#: As an operator gives it to workers, relays and commands.
VARIABLE = json.dumps({"keys": KEYS})


def signing(**options: object) -> Signing:
    """Return how the tests sign."""
    return Signing.model_validate({"keys": KEYS, **options})


SEAL = signing().seal()

"""RabbitMQ's password hashes: base64 of a salt of four bytes, then the digest of salt and password.

https://www.rabbitmq.com/docs/passwords#computing-password-hash
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Literal

from unlost.errors import TopologyError

Algorithm = Literal["rabbit_password_hashing_sha256", "rabbit_password_hashing_sha512"]

_SALT_BYTES = 4
_DIGESTS = {"rabbit_password_hashing_sha256": "sha256", "rabbit_password_hashing_sha512": "sha512"}


def hash_password(password: str, salt: bytes, algorithm: str = "rabbit_password_hashing_sha256") -> str:
    """Return the hash of a password as RabbitMQ stores it.

    Args:
        password: In clear.
        salt: Four bytes, from a source of randomness: ``secrets.token_bytes(4)``.
        algorithm: RabbitMQ's name of it.

    Raises:
        TopologyError: The salt has another length, or the algorithm is unknown (MD5 is not offered).
    """
    if len(salt) != _SALT_BYTES:
        raise TopologyError(f"a password salt has {_SALT_BYTES} bytes, not {len(salt)}")
    return base64.b64encode(salt + _digest(password, salt, algorithm)).decode()


def matches(password: str, password_hash: str, algorithm: str) -> bool:
    """Tell whether a hash is that of a password; one that cannot be read is of none."""
    try:
        raw = base64.b64decode(password_hash, validate=True)
    except binascii.Error:
        return False
    if algorithm not in _DIGESTS or len(raw) <= _SALT_BYTES:
        return False
    salt = raw[:_SALT_BYTES]
    return hmac.compare_digest(raw[_SALT_BYTES:], _digest(password, salt, algorithm))


def _digest(password: str, salt: bytes, algorithm: str) -> bytes:
    if algorithm not in _DIGESTS:
        raise TopologyError(f"hashing algorithm {algorithm!r} is not one of {', '.join(_DIGESTS)}")
    return hashlib.new(_DIGESTS[algorithm], salt + password.encode()).digest()

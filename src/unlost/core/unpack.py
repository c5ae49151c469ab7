"""Unpacking compressed bodies within a bound: a few KiB can unpack to more than a worker's memory."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

#: Of its dictionary; xz -9 takes 65 MiB, and a header can ask for gigabytes.
LZMA_MEMORY = 100 * 1024 * 1024


class Unsound(ValueError):
    """A body that cannot be unpacked, or not within the bound; the message says which."""


class _Decompressor(Protocol):
    """What the standard library's decompressors have in common."""

    def decompress(self, data: bytes, max_length: int = ...) -> bytes: ...

    @property
    def eof(self) -> bool: ...


_DECOMPRESSORS: Mapping[str, Callable[[], Any]] = {
    "application/x-gzip": zlib.decompressobj,
    "application/x-bz2": bz2.BZ2Decompressor,
    "application/x-lzma": partial(lzma.LZMADecompressor, memlimit=LZMA_MEMORY),
}
#: Kombu's short names.
_ALIASES = {
    "gzip": "application/x-gzip",
    "zlib": "application/x-gzip",
    "bzip2": "application/x-bz2",
    "bzip": "application/x-bz2",
    "lzma": "application/x-lzma",
    "xz": "application/x-lzma",
}


def unpack(body: bytes, compression: Any, most: int) -> bytes:
    """Return the unpacked body.

    Args:
        body: As it came.
        compression: The message's ``compression`` header; any value.
        most: Bytes that it may unpack to; no more than one further byte is ever unpacked.

    Raises:
        Unsound: The compression is unknown or cannot be bounded, the body is not compressed like that, is
            cut, or unpacks to more.
    """
    name = _ALIASES.get(compression, compression) if isinstance(compression, str) else ""
    if name not in _DECOMPRESSORS:
        known = ", ".join(sorted(_ALIASES))
        raise Unsound(f"compression {compression!r} is none that can be unpacked within a bound ({known})")
    decompressor: _Decompressor = _DECOMPRESSORS[name]()
    try:
        unpacked = decompressor.decompress(body, most + 1)
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as exc:
        raise Unsound(f"the body is not compressed with {compression!r}: {exc}") from exc
    if len(unpacked) > most:
        raise Unsound(f"the body unpacks to more than {most} bytes")
    if not decompressor.eof:
        raise Unsound(f"the end of the body, compressed with {compression!r}, is missing")
    return unpacked

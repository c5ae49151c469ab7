"""Compressed bodies are unpacked within a bound, and what is wrong with one is said."""

from __future__ import annotations

import bz2
import lzma
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from unlost.core.unpack import Unsound, unpack

COMPRESSORS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", zlib.compress),
    ("zlib", zlib.compress),
    ("application/x-gzip", zlib.compress),
    ("bzip2", bz2.compress),
    ("bzip", bz2.compress),
    ("lzma", lzma.compress),
    ("application/x-lzma", lzma.compress),
]


@pytest.mark.parametrize(("compression", "compress"), COMPRESSORS)
@pytest.mark.parametrize("body", [b"", b"x", b"x" * 100_000])
def test_what_kombu_compresses_is_unpacked(
    compression: str, compress: Callable[[bytes], bytes], body: bytes
) -> None:
    """Every one of kombu's names that the standard library has is read, up to the bound itself."""
    assert unpack(compress(body), compression, most=100_000) == body


@pytest.mark.parametrize(("compression", "compress"), COMPRESSORS)
def test_a_bomb_is_unpacked_no_further_than_the_bound(
    compression: str, compress: Callable[[bytes], bytes]
) -> None:
    """What unpacks to one byte more is refused, and a bomb takes no more memory than the bound."""
    with pytest.raises(Unsound, match="unpacks to more than 99999 bytes"):
        unpack(compress(b"x" * 100_000), compression, most=99_999)
    bomb = compress(b"\0" * 50_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(Unsound, match="unpacks to more"):
            unpack(bomb, compression, most=100_000)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("compression", "compress"), COMPRESSORS)
def test_a_cut_body_is_refused(compression: str, compress: Callable[[bytes], bytes]) -> None:
    """A body whose end is missing is no shorter body."""
    with pytest.raises(Unsound, match=r"is missing|is not compressed"):
        unpack(compress(b"some text, some text")[:-3], compression, most=1000)


@pytest.mark.parametrize("compression", ["gzip", "bzip2", "lzma"])
def test_a_body_that_is_not_compressed_is_refused(compression: str) -> None:
    """A header that says so makes nothing compressed."""
    with pytest.raises(Unsound, match="is not compressed with"):
        unpack(b'[["a"], {}, {}]', compression, most=1000)


@pytest.mark.parametrize("compression", ["zstd", "brotli", "middle-out", 7, ["gzip"], b"gzip", None])
def test_what_cannot_be_bounded_is_refused(compression: Any) -> None:
    """Anything else is refused by name."""
    with pytest.raises(Unsound, match="none that can be unpacked within a bound"):
        unpack(b"", compression, most=1000)

"""Layers for tests of lazy caches: their bytes, how they are packed, and sources that go wrong."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import lz4.block
from isal import isal_zlib

from lamina.lazy.cache import LayerCache
from lamina.lazy.checks import digest_of
from lamina.lazy.layer import LayerFile, create_layer
from lamina.lazy.policy import FillPolicy
from lamina.lazy.sources.description import FileDescription, SourceDescription
from lamina.lazy.sources.file import FileSource
from lamina.lazy.table import Header
from lamina.lazy.unit import BLOCK, Check, Codec, Piece, Unit

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ALONE = tuple(codec for codec in Codec if codec is not Codec.ZRAN)
"""What a unit can be decoded by that knows nothing but its own bytes."""
IMPATIENT = FillPolicy(fill_seconds=5.0, silence_seconds=0.0)


FACTORY = "tests.lazy_layers:open_from_file"


def open_from_file(directory: Path) -> LayerCache:
    """Open a layer as a worker does, whose blob is a file."""

    def source(description: SourceDescription) -> FileSource:
        assert isinstance(description, FileDescription)
        return FileSource(Path(description.path))

    return LayerCache(directory, source, policy=IMPATIENT)


def pack(codec: Codec, data: bytes) -> bytes:
    if codec is Codec.GZIP:
        return bytes(isal_zlib.compress(data, level=1, wbits=31))
    if codec is Codec.ZSTD:
        return zstd.compress(data)
    if codec is Codec.LZ4_BLOCK:
        return bytes(lz4.block.compress(data, store_size=False))
    return data


def padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


@dataclass
class Layer:
    """A blob, its units, and what the cache file is to hold in the end."""

    blob: bytes
    units: list[Unit]
    content: bytes

    @property
    def header(self) -> Header:
        return Header(len(self.blob), len(self.content))

    def create(self, directory: Path) -> Path:
        source = FileDescription(str(directory.with_suffix(".blob")))
        create_layer(directory, LayerFile(source), self.header, self.units)
        return directory

    def open(
        self,
        directory: Path,
        source: MemorySource | None = None,
        policy: FillPolicy = IMPATIENT,
    ) -> LayerCache:
        given = source or MemorySource(self.blob)
        return LayerCache(directory, lambda _: given, policy=policy)


def make_layer(
    lengths: Sequence[Sequence[int]],
    codecs: Sequence[Codec] = (Codec.GZIP,),
    *,
    seed: int = 0,
    header: int = 512,
    check: Check = Check.SHA256,
) -> Layer:
    """Make a layer with a unit for each of `lengths`, which are those of its pieces.

    Each piece follows `header` bytes in the decoded stream that nobody needs, and starts at a
    block of the cache of its own.
    """
    chance = random.Random(seed)
    blob, content = bytearray(), bytearray()
    units = []
    for number, pieces in enumerate(lengths):
        codec = codecs[number % len(codecs)]
        stream, found, start = bytearray(), [], len(content)
        for length in pieces:
            data = chance.randbytes(length // 2) + b"x" * (length - length // 2)
            stream += bytes(header)
            digest = bytes(32) if check is Check.NONE else digest_of(check, data)
            found.append(Piece(len(stream), length, len(content), check, digest))
            stream += data
            content += data + bytes(padded(length) - length)
        end = found[-1].cache_offset + found[-1].length
        packed = pack(codec, bytes(stream) + bytes(header))
        units.append(Unit(len(blob), len(packed), start, end - start, codec, tuple(found)))
        blob += packed
    return Layer(bytes(blob), units, bytes(content))


@dataclass
class MemorySource:
    """A source in memory that counts; `hook` runs before each answer and may raise."""

    data: bytes
    hook: Callable[[int, int], None] = lambda offset, length: None
    asked: list[tuple[int, int]] = field(default_factory=list)
    closed: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def size(self) -> int:
        return len(self.data)

    def read_at(self, offset: int, length: int) -> bytes:
        with self.lock:
            self.asked.append((offset, length))
        self.hook(offset, length)
        assert 0 <= offset <= offset + length <= len(self.data)
        return self.data[offset : offset + length]

    def close(self) -> None:
        self.closed += 1

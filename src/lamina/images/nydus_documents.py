"""What a Nydus image has beside its blobs: the layer with the bootstrap, and its history."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from lamina.core.digest import Digest
from lamina.formats.compression import Compression, compressor
from lamina.formats.rafs.annotations import BOOTSTRAP_PATH
from lamina.formats.tar import END_OF_ARCHIVE, Entry, Type, header, padding
from lamina.formats.temporary import spooling
from lamina.images.manifest import History
from lamina.images.tree import PlatformImage

_CREATED_BY = "lamina images convert"
_STEP = 1 << 20


def write_bootstrap_layer(
    make: Callable[[BinaryIO], object], write: Callable[[bytes], object], *, temporary: Path
) -> Digest:
    """Write the layer, a gzip'd tar; return its diff id.

    Args:
        make: writes the bootstrap to a file.
        write: takes the layer.
        temporary: directory for a file without a name, as large as the bootstrap.

    Raises:
        ResourceExhausted: the disk is full.
    """
    with tempfile.TemporaryFile(dir=temporary) as file:
        with spooling("the bootstrap", temporary):
            make(file)
            file.flush()
        size = file.tell()
        file.seek(0)
        layer = _PackedTar(write)
        layer.write(header(Entry(b"image/", type=Type.DIRECTORY, mode=0o755)))
        layer.write(header(Entry(BOOTSTRAP_PATH.encode(), mode=0o444, size=size)))
        while data := file.read(_STEP):
            layer.write(data)
        layer.write(bytes(padding(size)) + END_OF_ARCHIVE)
    return layer.finish()


class _PackedTar:
    """A tar that is written compressed."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._packer = compressor(Compression.GZIP)
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._hash.update(data)
        self._write(self._packer.compress(data))

    def finish(self) -> Digest:
        self._write(self._packer.flush())
        return Digest("sha256:" + self._hash.hexdigest())


def nydus_history(
    image: PlatformImage, has_blob: Sequence[bool], foreign: int
) -> list[dict[str, object]]:
    """Return one entry for each layer, and those that are about none.

    A step whose layer has no blob now has none. An image whose history does not match its layers
    gets one of its own.

    Args:
        image: the source.
        has_blob: whether a blob has been made of its layers, base first.
        foreign: blobs of a chunk dictionary, which come before them.
    """
    said = image.config.history
    if sum(not step.empty_layer for step in said) != len(has_blob):
        said = tuple(History(created_by=f"layer {layer.digest}") for layer in image.manifest.layers)
    dictionary = History(created_by=_CREATED_BY, comment="Nydus blob of the chunk dictionary")
    steps = [dictionary] * foreign
    made = iter(has_blob)
    for step in said:
        is_empty = step.empty_layer or not next(made)
        steps.append(msgspec.structs.replace(step, empty_layer=is_empty))
    steps.append(History(created_by=_CREATED_BY, comment="Nydus bootstrap"))
    found: list[dict[str, object]] = msgspec.to_builtins(steps)
    return found

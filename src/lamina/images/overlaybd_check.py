"""Whether an overlaybd image is sound: its layers, the device they make, and every block."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from lamina.core.digest import algorithm
from lamina.core.source import RangeSource
from lamina.errors import Cancelled, DigestMismatch, FormatError, InvalidArgument, LaminaError
from lamina.formats.lsmt.reader import Layer, open_layer
from lamina.formats.lsmt.stack import Stack
from lamina.formats.overlaybd.annotations import BLOB_DIGEST, BLOB_SIZE, FS_TYPE
from lamina.formats.overlaybd.priorities import read_priorities
from lamina.formats.overlaybd.trace import (
    ACCESS,
    HEADER,
    MAX_ACCESSES,
    NAME,
    is_trace,
    read_trace,
)
from lamina.formats.stream import ChunkStream
from lamina.formats.tar import TarReader, Type
from lamina.formats.zfile.reader import ZFile
from lamina.images.blob_source import FileSource
from lamina.images.content import ContentStore
from lamina.images.manifest import Descriptor, Manifest
from lamina.images.overlaybd import device_layers, is_acceleration, is_overlaybd, is_turbo
from lamina.images.registry.cancel import Cancel

_WHAT = "verify overlaybd image"
_BATCH = 256
"""Blocks that are verified at once."""
_FILESYSTEMS = {
    "erofs": (1024, bytes.fromhex("e2e1f5e0")),
    "ext4": (1080, bytes.fromhex("53ef")),
    "xfs": (0, b"XFSB"),
}
"""Where their superblocks say what they are, and how."""
_HEAD = 4096
_MAX_TRACE = HEADER.size + MAX_ACCESSES * ACCESS.size


def verify_overlaybd(
    content: ContentStore, manifest: Manifest, *, deep: bool = True, cancel: Cancel | None = None
) -> list[str]:
    """Read the layers of an overlaybd image; return what is wrong, as sentences.

    Each layer has to be what the manifest says, a sealed LSMT layer in whatever it is wrapped in,
    and together they must be a device with the filesystem that the manifest names. Layers of files
    may lie above, but not below.

    Args:
        content: has the blobs.
        manifest: of the image.
        deep: whether the digests of the blobs, and of ZFiles each block, are verified too.
        cancel: stops it from another thread.

    Raises:
        InvalidArgument: it is no overlaybd image, or one of TurboOCI, whose data is in the layers
            of another image.
        Cancelled: told to stop.
    """
    if not is_overlaybd(manifest) or any(map(is_turbo, manifest.layers)):
        raise InvalidArgument("verify what is no overlaybd image with its data in its layers")
    checking = _Check(content, manifest, deep=deep, cancel=cancel or Cancel())
    with checking:
        checking.run()
    return checking.faults


class _Check(ExitStack):
    """Has the blobs open, of which the device is made."""

    def __init__(
        self, content: ContentStore, manifest: Manifest, *, deep: bool, cancel: Cancel
    ) -> None:
        super().__init__()
        self.faults: list[str] = []
        self._content = content
        self._manifest = manifest
        self._deep = deep
        self._cancel = cancel

    def run(self) -> None:
        device = device_layers(self._manifest)
        found: list[Layer] = []
        for number, layer in enumerate(self._manifest.layers):
            if layer not in device and not is_acceleration(layer):
                if any(above in device for above in self._manifest.layers[number:]):
                    self.faults.append(f"layer {layer.digest}: it has files, below the device")
                continue
            try:
                found += self._check_layer(layer)
            except Cancelled:
                raise
            except LaminaError as error:
                self.faults.append(f"layer {layer.digest}: {error}")
        if not self.faults:
            self._check_device(device[-1], found)

    def _check_layer(self, layer: Descriptor) -> list[Layer]:
        """Check a layer, and return it if it is one of the device."""
        source = FileSource(self.enter_context(self._content.open(layer.digest)))
        _check_descriptor(layer, source)
        if self._deep:
            self._check_digest(layer)
        if is_acceleration(layer):
            _check_trace(source)
            return []
        opened = open_layer(source)
        if self._deep and isinstance(opened.source, ZFile):
            self._check_blocks(layer, opened.source)
        return [opened]

    def _check_digest(self, layer: Descriptor) -> None:
        with open(self._content.path(layer.digest), "rb") as file:
            name = algorithm(layer.digest)
            got = f"{name}:{hashlib.file_digest(file, name).hexdigest()}"
        if got != layer.digest:
            self.faults.append(f"layer {layer.digest}: expected its digest, got {got}")

    def _check_blocks(self, layer: Descriptor, zfile: ZFile) -> None:
        """Decompress and verify all blocks, and tell each that is damaged."""
        size = zfile.block_size
        for first in range(0, zfile.size, _BATCH * size):
            self._cancel.check("verify layer", layer.digest)
            stop = min(first + _BATCH * size, zfile.size)
            if not _fault(zfile, first, stop):
                continue
            for start in range(first, stop, size):
                if fault := _fault(zfile, start, min(start + size, stop)):
                    self.faults.append(f"layer {layer.digest}: {fault}")

    def _check_device(self, top: Descriptor, layers: Sequence[Layer]) -> None:
        try:
            stack = Stack(layers)
            head = stack.read_at(0, min(_HEAD, stack.size))
        except LaminaError as error:
            self.faults.append(f"device: {error}")
            return
        said = top.annotations.get(FS_TYPE, "ext4").partition(";")[0]
        # As overlaybd has it: an EROFS image is one, whatever the annotation says.
        known = [_FILESYSTEMS[name] for name in (said, "erofs") if said in _FILESYSTEMS]
        if known and not any(head[at:].startswith(magic) for at, magic in known):
            self.faults.append(f"device: expected a filesystem of type {said}, got none")


def _check_descriptor(layer: Descriptor, source: RangeSource) -> None:
    said = {
        "size in bytes": (str(layer.size), str(source.size)),
        BLOB_DIGEST: (layer.digest, layer.annotations.get(BLOB_DIGEST, layer.digest)),
        BLOB_SIZE: (str(layer.size), layer.annotations.get(BLOB_SIZE, str(layer.size))),
    }
    for name, (expected, got) in said.items():
        if got != expected:
            raise DigestMismatch(_WHAT, name, expected=expected, got=got)


def _check_trace(source: RangeSource) -> None:
    """See that a layer is a tar with a trace, or with a list of paths in its place."""
    stream = ChunkStream(_chunks(source))
    tar = TarReader(stream)
    entry = tar.next()
    if entry is None or entry.name != NAME or entry.type != Type.REGULAR:
        got = "no member" if entry is None else repr(entry.name[:100])
        raise FormatError("acceleration layer", 0, expected=repr(NAME), got=got)
    if entry.real_size > _MAX_TRACE:
        expected = f"a trace of at most {_MAX_TRACE} bytes"
        raise FormatError("acceleration layer", stream.offset, expected=expected, got="more")
    parts = []
    while part := tar.take():
        parts.append(part)
    trace = b"".join(parts)
    if is_trace(trace):
        read_trace(trace)
    else:
        read_priorities(trace)


def _chunks(source: RangeSource) -> Iterator[bytes]:
    for at in range(0, source.size, _HEAD):
        yield source.read_at(at, min(_HEAD, source.size - at))


def _fault(zfile: ZFile, start: int, stop: int) -> str:
    """Return what is wrong with blocks; "" for nothing."""
    try:
        zfile.read_at(start, stop - start)
    except LaminaError as error:
        return str(error)
    return ""

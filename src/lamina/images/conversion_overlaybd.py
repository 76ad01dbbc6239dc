"""overlaybd images: a block device with an ext4 filesystem, in as many layers as the source has.

The filesystem is made without the kernel: each layer is applied to that of the layers below it, and
the blocks that this writes become a sealed LSMT layer, as overlaybd's own tools make them.
Equal sources and options give equal bytes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import BinaryIO
from uuid import UUID

from lamina.core.digest import Digest, encoded, sha256
from lamina.core.labels import UNCOMPRESSED
from lamina.errors import InvalidArgument
from lamina.formats.compression import Read, decompress
from lamina.formats.estargz.annotations import PREFIXES as LAZY_PREFIXES
from lamina.formats.ext4.geometry import geometry
from lamina.formats.ext4.layers import Applied, Ext4Layers
from lamina.formats.lsmt.blob import write_blob
from lamina.formats.lsmt.layout import MAX_LAYERS, NO_UUID, About
from lamina.formats.lsmt.mappings import Extent
from lamina.formats.lsmt.writer import Written
from lamina.formats.overlaybd.annotations import (
    ACCELERATION,
    BLOB_DIGEST,
    BLOB_SIZE,
    FS_TYPE,
    NATIVE_VERSION,
    PREFIX,
    VERSION,
)
from lamina.formats.temporary import spooling
from lamina.formats.zfile.writer import ZFileOptions
from lamina.images.acceleration import MadeTrace, make_acceleration, with_acceleration
from lamina.images.blob_source import FileSource
from lamina.images.content import ContentStore
from lamina.images.conversion_image import (
    MadeImage,
    Wanted,
    require_distributable,
    require_files,
)
from lamina.images.conversion_source import SourceLayers, left_out
from lamina.images.fetch import Fetcher
from lamina.images.manifest import OCI_LAYER, Descriptor
from lamina.images.progress import Stage
from lamina.images.registry.cancel import Cancel
from lamina.images.tree import PlatformImage
from lamina.layer.blob import is_sniffed

DEFAULT_SIZE = 64 << 30
FS = "ext4"
_BLOCK = 4096
_STEP = 1 << 20
_UNTRUE = (PREFIX, *LAZY_PREFIXES)
"""What annotations begin with that are about the source's blob."""


@dataclass(frozen=True, slots=True)
class OverlaybdOptions:
    """How an overlaybd image is written.

    Attributes:
        zfile: how layers are compressed, and in blocks of which size.
        virtual_size: bytes of the device, 1 MiB to 16 TiB.
    """

    zfile: ZFileOptions = field(default_factory=ZFileOptions)
    virtual_size: int = DEFAULT_SIZE

    def check(self) -> None:
        """Check what can be checked before anything is done.

        Raises:
            InvalidArgument: a size is out of range.
        """
        self.zfile.check()
        if self.virtual_size % _BLOCK:
            hint = f"it must be whole blocks of {_BLOCK}"
            raise InvalidArgument("write a device of size", self.virtual_size, hint=hint)
        geometry(self.virtual_size)


@dataclass(frozen=True, slots=True)
class OverlaybdLayer:
    """A layer of an overlaybd image.

    Attributes:
        source: the layer as it was; None for the one that says what to prefetch.
        target: what it became.
        data: bytes of the device that it has.
        prioritized: paths that come first in it, or that it says to prefetch.
        warnings: what was left out, as sentences.
    """

    source: Descriptor | None
    target: Descriptor
    data: int = 0
    prioritized: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Place:
    """A layer of the source in its image."""

    layer: Descriptor
    diff_id: Digest
    chain_id: Digest
    about: About


class OverlaybdConverter:
    """Converts images of the content store.

    Args:
        content: gets the layers; has the filesystem in a file without a name meanwhile.
        fetcher: of the operation; its lease holds what is written.
        source: has the layers.
        options: of device and layers.
        cancel: stops it from another thread.

    Attributes:
        converted: what was converted so far.
    """

    def __init__(
        self,
        content: ContentStore,
        fetcher: Fetcher,
        source: SourceLayers,
        options: OverlaybdOptions,
        *,
        cancel: Cancel,
    ) -> None:
        self.converted: list[OverlaybdLayer] = []
        self._content = content
        self._fetcher = fetcher
        self._source = source
        self._options = options
        self._cancel = cancel

    def convert(self, image: PlatformImage, prioritized: Wanted) -> MadeImage:
        """Convert an image.

        Args:
            image: whose layers are in the store.
            prioritized: returns the files of a layer that are wanted first; if there are any, a
                layer on top of all says that they are to be prefetched.

        Raises:
            InvalidArgument: it is an overlaybd or Nydus image, has no layers, too many, or one
                that must not be distributed.
            NotFound: a layer's blob is not in the store.
            DigestMismatch: a layer is not what its image's configuration says.
            FormatError: a layer is damaged.
            ResourceExhausted: the device is too small, or the disk is full.
        """
        _check(image)
        made: list[OverlaybdLayer] = []
        paths: list[bytes] = []
        with tempfile.TemporaryFile(dir=self._content.root) as spool:
            limit = self._source.limits.max_entries
            filesystem = Ext4Layers(self._options.virtual_size, spool, max_entries=limit)
            for place in self._places(image):
                wanted = prioritized(place.layer.digest) or ()
                made.append(self._convert(place, filesystem, spool, wanted))
                paths += wanted
        trace = make_acceleration(paths)
        history = None
        if trace.paths:
            made.append(self._keep_acceleration(trace))
            history = with_acceleration(image)
        else:  # a trace that is empty asks overlaybd to record one
            made[-1] = replace(made[-1], warnings=made[-1].warnings + trace.warnings)
        self.converted += made
        targets = tuple(layer.target for layer in made)
        return MadeImage(targets, tuple(target.digest for target in targets), history)

    def _places(self, image: PlatformImage) -> Iterator[_Place]:
        layers, diff_ids = image.manifest.layers, image.config.rootfs.diff_ids
        parent = NO_UUID
        for layer, diff_id, chain_id in zip(layers, diff_ids, image.chain, strict=True):
            uuid = UUID(encoded(chain_id)[:32])
            about = About(self._options.virtual_size, uuid, parent)
            yield _Place(layer, diff_id, chain_id, about)
            parent = uuid

    def _convert(
        self,
        place: _Place,
        filesystem: Ext4Layers,
        spool: BinaryIO,
        prioritized: Sequence[bytes],
    ) -> OverlaybdLayer:
        layer = place.layer
        self._source.tell(layer, Stage.CONVERTING)
        applied = self._apply(place, filesystem, prioritized)
        with spooling("the filesystem", self._content.root):
            spool.flush()
        extents = applied.extents
        if not extents:
            # overlaybd's own tools make no layer that maps nothing: this one has the superblock.
            extents = [Extent(0, _BLOCK, 0, 0)]
        digest, size, written = self._write(place, spool, extents)
        self._source.tell(layer, Stage.DONE, layer.size)
        kept = {
            name: value for name, value in layer.annotations.items() if not name.startswith(_UNTRUE)
        }
        target = Descriptor(
            OCI_LAYER, digest, size, annotations={**kept, **_annotations(digest, size)}
        )
        warnings = tuple(applied.warnings)
        return OverlaybdLayer(layer, target, written.data, len(prioritized), warnings)

    def _apply(
        self, place: _Place, filesystem: Ext4Layers, prioritized: Sequence[bytes]
    ) -> Applied:
        layer = place.layer

        def unpack(read: Read) -> Iterator[bytes]:
            counted = _counted(read, lambda done: self._tell(layer, done, 2 * layer.size))
            return decompress(counted, sniff=is_sniffed(layer.media_type))

        with (
            spooling("the filesystem", self._content.root),
            self._source.tar(layer, place.diff_id, unpack) as tar,
        ):
            return filesystem.apply(tar, prioritized=prioritized, leave_out=left_out(layer))

    def _write(
        self, place: _Place, spool: BinaryIO, extents: Sequence[Extent]
    ) -> tuple[Digest, int, Written]:
        """Write a layer's blob, and return its digest, its bytes, and what it has."""
        layer = place.layer
        total = sum(extent.length for extent in extents)
        with tempfile.TemporaryFile(dir=self._content.root) as file:
            with spooling("the layer", self._content.root):
                written = write_blob(
                    file,
                    extents,
                    [FileSource(spool)],
                    place.about,
                    self._options.zfile,
                    advance=lambda done: self._tell(layer, total + done, 2 * total),
                )
                file.flush()
            digest, size = self._keep(f"convert-overlaybd-{place.chain_id}", _pieces(file))
        return digest, size, written

    def _tell(self, layer: Descriptor, done: int, total: int) -> None:
        self._source.tell(layer, Stage.CONVERTING, layer.size * min(done, total) // max(total, 1))

    def _keep_acceleration(self, trace: MadeTrace) -> OverlaybdLayer:
        ref = f"convert-overlaybd-{sha256(trace.layer)}"
        digest, size = self._keep(ref, iter([trace.layer]))
        annotations = {**_annotations(digest, size), ACCELERATION: "yes"}
        target = Descriptor(OCI_LAYER, digest, size, annotations=annotations)
        return OverlaybdLayer(None, target, 0, trace.paths, trace.warnings)

    def _keep(self, ref: str, data: Iterator[bytes]) -> tuple[Digest, int]:
        # One writer at a time has the name, and what a killed one has left is written over.
        with self._content.open_writer(ref, cancel=self._cancel) as writer:
            try:
                for piece in data:
                    writer.write(piece)
                size = writer.offset
                self._fetcher.hold([Descriptor("", writer.digest, size)])
                return writer.commit({UNCOMPRESSED: writer.digest}), size
            except BaseException:
                writer.abort()
                raise


def _check(image: PlatformImage) -> None:
    require_files(image, "overlaybd")
    require_distributable(image, "overlaybd")
    count = len(image.manifest.layers)
    if not 0 < count <= MAX_LAYERS:
        what = f"convert an image of {count} layers to overlaybd"
        hint = f"a device has 1 to {MAX_LAYERS}"
        raise InvalidArgument(what, image.descriptor.digest, hint=hint)


def _annotations(digest: Digest, size: int) -> dict[str, str]:
    return {
        BLOB_DIGEST: digest,
        BLOB_SIZE: str(size),
        FS_TYPE: FS,
        VERSION: NATIVE_VERSION,
    }


def _counted(read: Read, advance: Callable[[int], None]) -> Read:
    """Return what reads as `read` does, and tells how many bytes that were so far."""
    done = 0

    def counting(size: int) -> bytes:
        nonlocal done
        data = read(size)
        done += len(data)
        advance(done)
        return data

    return counting


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    while data := file.read(_STEP):
        yield data

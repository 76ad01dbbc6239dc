"""Which layer of an image has a file, as whoever stacks the layers sees it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from lamina.errors import NotFound
from lamina.formats.compression import decompress
from lamina.formats.stream import ChunkStream
from lamina.formats.tar import TarReader
from lamina.formats.tar.layer import OPAQUE_MARKER, PREFIX, clean, deleted_name
from lamina.formats.tar.layout import WITHOUT_BODY, Type
from lamina.images.manifest import Descriptor
from lamina.images.recording import RecordedFile
from lamina.images.store import ImageStore
from lamina.images.tree import PlatformImage
from lamina.layer.blob import is_sniffed

log = logging.getLogger(__name__)

_NO_FILES = WITHOUT_BODY - {Type.HARD_LINK}


class Attributed(NamedTuple):
    """Paths and the layers that have them.

    Attributes:
        files: with manifest and layer, in the order of the paths.
        others: paths at which no layer has a file: made by the container, or of another image.
    """

    files: list[RecordedFile]
    others: list[bytes]

    def of_layer(self, index: int) -> list[bytes]:
        """Return the paths that a layer has, in order."""
        return [file.path for file in self.files if file.layer == index]


def attribute(image: PlatformImage, store: ImageStore, paths: Iterable[bytes]) -> Attributed:
    """Find the layers that have regular files, or hard links, at these paths.

    The headers of the layers' archives are read, from the top one down until all are found.

    Raises:
        NotFound: a layer's blob is not in the store.
        FormatError: a layer is damaged.
    """
    cleaned = list(dict.fromkeys(clean(path) for path in paths))
    layers = image.manifest.layers
    archives = (_archive(store, descriptor) for descriptor in reversed(layers))
    found = find_layers(cleaned, archives)
    files: list[RecordedFile] = []
    others: list[bytes] = []
    for path in cleaned:
        depth = found.get(path)
        if depth is None:
            others.append(path)
            continue
        files.append(RecordedFile(path, image.descriptor.digest, len(layers) - 1 - depth))
    return Attributed(files, others)


def require_blobs(image: PlatformImage, store: ImageStore) -> None:
    """Check that the blobs of all layers are in the store.

    Raises:
        NotFound: one is not; a lazy snapshotter may have left it in its registry.
    """
    for layer in image.manifest.layers:
        if not store.content.has(layer.digest):
            raise _missing(layer)


def find_layers(
    paths: Sequence[bytes], archives: Iterable[Iterable[tuple[bytes, bytes]]]
) -> dict[bytes, int]:
    """Return how many layers lie above the one that has each file.

    Args:
        paths: clean, from the root.
        archives: of each layer the names, not cleaned, and types of its members; top one first.

    Returns:
        by path; none of what is deleted, of what is no regular file, and of what is nowhere.
    """
    found: dict[bytes, int] = {}
    wanted = set(paths)
    for depth, members in enumerate(archives):
        layer = _Layer(wanted)
        for name, kind in members:
            layer.add(name, kind)
        for path in list(wanted):
            if path in layer.kinds:
                wanted.discard(path)
                if layer.kinds[path] not in _NO_FILES:
                    found[path] = depth
            elif layer.hides(path):
                wanted.discard(path)
        if not wanted:
            break
    return found


class _Layer:
    """What one layer says of some paths and of the directories above them."""

    def __init__(self, paths: Iterable[bytes]) -> None:
        self.kinds: dict[bytes, bytes] = {}
        self._known = {above for path in paths for above in (path, *_above(path))}
        self._deleted: set[bytes] = set()
        self._opaque: set[bytes] = set()

    def add(self, name: bytes, kind: bytes) -> None:
        path = clean(name)
        directory, _, base = path.rpartition(b"/")
        if not base.startswith(PREFIX):
            if path in self._known:
                self.kinds[path] = kind
        elif base == OPAQUE_MARKER:
            self._opaque.add(directory)
        elif (deleted := deleted_name(base, 0)) is not None:
            self._deleted.add(directory + b"/" + deleted if directory else deleted)

    def hides(self, path: bytes) -> bool:
        """Tell whether what lower layers have at `path` is not to be seen."""
        if path in self._deleted:
            return True
        return any(
            above in self._deleted
            or above in self._opaque
            or self.kinds.get(above, Type.DIRECTORY) != Type.DIRECTORY
            for above in _above(path)
        )


def _above(path: bytes) -> Iterator[bytes]:
    """Yield the directories that a path lies in, the root last."""
    while path:
        path = path.rpartition(b"/")[0]
        yield path


def _archive(store: ImageStore, layer: Descriptor) -> Iterator[tuple[bytes, bytes]]:
    try:
        blob = store.content.open(layer.digest)
    except NotFound as error:
        raise _missing(layer) from error
    with blob:
        chunks = decompress(blob.read, sniff=is_sniffed(layer.media_type))
        reader = TarReader(ChunkStream(chunks))
        while (entry := reader.next()) is not None:
            yield entry.name, entry.type


def _missing(layer: Descriptor) -> NotFound:
    hint = "fetch it: lamina images pull --no-unpack"
    return NotFound("blob of a layer", layer.digest, hint=hint)

"""EROFS images, read in all ways."""

from __future__ import annotations

from collections.abc import Iterator

from lamina.errors import FormatError, InvalidArgument
from lamina.formats.erofs.layout import EROFS_SUPER_OFFSET
from lamina.formats.erofs.reader import Image
from tests.erofs import Bytes, Data, everything
from tests.erofs_by_hand import DEVICES, by_hand
from tests.erofs_reading import small, without_checksum, written
from tests.fuzz.target import Target

_MAX_READ = 1 << 20
_HEAD = bytes(EROFS_SUPER_OFFSET)


def _seeds() -> Iterator[bytes]:
    """Yield images from the superblock on."""
    data = Data(2)
    for image in (written(*small()), written(everything(data), data), bytes(by_hand())):
        yield bytes(without_checksum(image))[EROFS_SUPER_OFFSET:]


def _run(data: bytes) -> None:
    raw = without_checksum(_HEAD + data) if len(data) > 8 else _HEAD + data
    try:
        image = Image(Bytes(raw), [Bytes(device) for device in DEVICES])
        image.tree()
        _use(image)
    except (FormatError, InvalidArgument):
        return


def _use(image: Image) -> None:
    for path, node in image.walk():
        assert image.lookup(path) == node
        image.xattrs(node)
        if node.is_regular:
            total = (
                sum(extent.length for extent in image.extents(node)) if node.size < 1 << 30 else 0
            )
            assert total == node.size or not total
            length = min(node.size, _MAX_READ)
            assert len(image.read(node, 0, length)) == length


TARGETS = {"erofs": Target(_seeds, _run)}

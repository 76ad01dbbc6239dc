"""Small overlaybd images made in memory."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from lamina.core.digest import sha256
from lamina.formats.lsmt.blob import write_blob
from lamina.formats.lsmt.layout import About
from lamina.formats.lsmt.mappings import Extent
from lamina.formats.overlaybd.annotations import BLOB_DIGEST, BLOB_SIZE, FS_TYPE, VERSION
from lamina.images.content import ContentStore
from lamina.images.manifest import OCI_CONFIG, OCI_LAYER, Descriptor, Manifest
from tests.erofs import Bytes

SIZE = 1 << 20
EXT4 = bytes(1080) + b"\x53\xef"
"""What begins as an ext4 filesystem does."""


def blob_of(blocks: Mapping[int, bytes], size: int = SIZE) -> bytes:
    """Return a layer with blocks of 4096 bytes, each at its byte of the device."""
    data = b"".join(block.ljust(4096, b"\0") for block in blocks.values())
    extents = [Extent(at, 4096, 0, number * 4096) for number, at in enumerate(blocks)]
    out = io.BytesIO()
    write_blob(out, extents, [Bytes(data)], About(size))
    return out.getvalue()


def put_layer(content: ContentStore, blob: bytes, **annotations: str) -> Descriptor:
    """Put a layer into the store; annotations are named by what follows the prefix."""
    digest = sha256(blob)
    said = {BLOB_DIGEST: digest, BLOB_SIZE: str(len(blob)), FS_TYPE: "ext4", VERSION: "0.1.0"}
    prefix = FS_TYPE.rpartition("/")[0]
    said |= {f"{prefix}/{name.replace('_', '-')}": value for name, value in annotations.items()}
    descriptor = Descriptor(OCI_LAYER, digest, len(blob), annotations=said)
    content.put(blob, descriptor)
    return descriptor


def manifest_of(layers: Sequence[Descriptor]) -> Manifest:
    config = Descriptor(OCI_CONFIG, sha256(b"{}"), 2)
    return Manifest(schema_version=2, config=config, layers=tuple(layers))

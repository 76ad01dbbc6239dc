"""The devices of an EROFS mount of a RAFS image, filled from its blobs."""

from __future__ import annotations

from lamina.formats.erofs.tree import BLOCK
from lamina.formats.rafs.blob_meta import BlobMeta, read_blob_meta
from lamina.formats.rafs.digests import digest_of
from lamina.formats.rafs.model import Bootstrap
from lamina.formats.rafs.units import Layout, decode_unit
from tests.erofs import Bytes


def filled(layout: Layout, bootstrap: Bootstrap, blobs: dict[int, bytes]) -> list[bytes]:
    """Return the devices, with every unit decoded, verified and put in its place."""
    devices = []
    for device in layout.devices:
        assert device.size % BLOCK == 0
        content = bytearray(device.size)
        end = 0
        for unit in device.units:
            assert unit.cache_offset % BLOCK == 0
            assert unit.cache_offset >= end
            end = unit.cache_offset + unit.cache_length
            stop = unit.source_offset + unit.source_length
            data = decode_unit(unit, blobs[device.blob][unit.source_offset : stop])
            for inner, length, offset, digest in unit.pieces:
                body = data[inner : inner + length]
                assert digest_of(bootstrap.digester, body) == digest
                content[offset : offset + length] = body
        assert end <= device.size
        devices.append(bytes(content))
    return devices


def metas(bootstrap: Bootstrap, blob: bytes) -> dict[int, BlobMeta]:
    return {0: read_blob_meta(Bytes(blob), bootstrap.blobs[0])}

"""Bootstraps and blobs of Nydus images."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

from lamina.errors import DigestMismatch, FormatError, InvalidArgument
from lamina.formats.erofs.tree import BLOCK
from lamina.formats.erofs.writer import Device, write_image
from lamina.formats.rafs.blob_meta import read_blob_meta
from lamina.formats.rafs.bootstrap import read_bootstrap
from lamina.formats.rafs.toc import read_toc, read_toc_entry
from lamina.formats.rafs.tree import to_tree
from lamina.formats.rafs.units import decode_unit, lay_out_v5, lay_out_v6
from tests.erofs import Bytes
from tests.fuzz.target import Target
from tests.rafs import CHUNK, Made, directory, noise, regular, sample
from tests.rafs_blobs import GZIP, LZ4, ZSTD
from tests.rafs_v5 import make_v5
from tests.rafs_v6 import make_v6

_REFUSED = (FormatError, InvalidArgument, DigestMismatch)


def _few() -> Made:
    return directory({b"d": directory({b"f": regular(noise(CHUNK) + b"x" * 5000)})})


_V5_BLOB = make_v5(_few(), compressor=LZ4)[1]
_V6, _V6_BLOB = make_v6(_few(), compressor=ZSTD, batch=8192)


def _version_5() -> Iterator[bytes]:
    yield make_v5(_few(), compressor=LZ4)[0]
    yield make_v5(sample(), compressor=GZIP)[0]


def _version_6() -> Iterator[bytes]:
    yield _V6
    yield make_v6(_few(), compressor=GZIP)[0]
    yield make_v6(_few(), tar=True)[0]
    yield make_v6(sample(), compressor=ZSTD, batch=8192)[0]


def _blobs() -> Iterator[bytes]:
    yield _V6_BLOB


def _use(raw: bytes, blob: bytes) -> None:
    """Read all that a bootstrap and its blob have, without looking at digests."""
    bootstrap = read_bootstrap(Bytes(raw), verify=False)
    source = Bytes(blob)
    if bootstrap.version == 5:
        layout = lay_out_v5(bootstrap)
    else:
        for entry in read_toc(source).values():
            if entry.name != "image.blob":
                read_toc_entry(source, entry)
        metas = {
            index: read_blob_meta(source, each)
            for index, each in enumerate(bootstrap.blobs)
            if each.meta
        }
        layout = lay_out_v6(bootstrap, metas)
    for device in layout.devices:
        for unit in device.units:
            data = blob[unit.source_offset : unit.source_offset + unit.source_length]
            if len(data) == unit.source_length:
                with contextlib.suppress(*_REFUSED):
                    decode_unit(unit, data)
    devices = [Device(-(-device.size // BLOCK)) for device in layout.devices]
    write_image(to_tree(bootstrap, layout), io.BytesIO(), devices=devices)


def _v5(data: bytes) -> None:
    with contextlib.suppress(*_REFUSED):
        _use(data, _V5_BLOB)


def _v6(data: bytes) -> None:
    with contextlib.suppress(*_REFUSED):
        _use(data, _V6_BLOB)


def _blob(data: bytes) -> None:
    with contextlib.suppress(*_REFUSED):
        _use(_V6, data)


TARGETS = {
    "rafs5": Target(_version_5, _v5),
    "rafs6": Target(_version_6, _v6),
    "rafs-blob": Target(_blobs, _blob),
}

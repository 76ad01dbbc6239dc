"""Footers, tables of contents, and whole blobs of eStargz and zstd:chunked."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator

from lamina.errors import FormatError, InvalidArgument
from lamina.formats.erofs.reader import Image
from lamina.formats.erofs.tree import BLOCK
from lamina.formats.erofs.writer import Device, write_image
from lamina.formats.estargz.footer import (
    TAIL_SIZE,
    chunked_footer,
    estargz_footer,
    external_footer,
    find_toc,
    legacy_footer,
)
from lamina.formats.estargz.toc import Toc, parse_toc, read_toc
from lamina.formats.estargz.tree import to_tree
from tests.estargz import make_blob, make_chunked_blob
from tests.estargz_reading import OPAQUE, BytesSource
from tests.fuzz.target import Target

_END = 1 << 28
_FILES = {"a/b": b"x" * 9000, "a/c": b"", "zeros": b"1" + bytes(9000), "d": b"data"}


def _footers() -> Iterator[bytes]:
    room = bytes(TAIL_SIZE)
    yield room + estargz_footer(5)
    yield room + legacy_footer(5)
    yield room + external_footer()
    yield room + chunked_footer(20, 30, 100)
    yield make_chunked_blob(_FILES, 4096)[-2 * TAIL_SIZE :]


def _footer(data: bytes) -> None:
    try:
        found = find_toc(BytesSource(data))
    except FormatError:
        return
    assert 0 <= found.data_end <= found.offset <= found.offset + found.length <= len(data)


def _tocs() -> Iterator[bytes]:
    for blob in _blobs():
        entries = []
        for entry in read_toc(BytesSource(blob), find_toc(BytesSource(blob))).entries:
            fields = {"name": entry.name, "type": entry.type, "size": entry.size}
            fields |= {"offset": entry.offset, "innerOffset": entry.inner_offset}
            fields |= {"chunkOffset": entry.chunk_offset, "chunkSize": entry.chunk_size}
            fields |= {"chunkDigest": entry.chunk_digest, "chunkType": entry.chunk_type}
            entries.append({key: value for key, value in fields.items() if value})
        yield json.dumps({"version": 1, "entries": entries}).encode()
    times = {"modtime": "2026-01-02T03:04:05.5Z", "mode": 0o755, "uid": 1, "gid": 2}
    rows = (
        {"name": "d/", "type": "dir", "xattrs": {"user.a": "MQ=="}, **times},
        {"name": "d/l", "type": "symlink", "linkName": "../x", **times},
        {"name": "d/h", "type": "hardlink", "linkName": "d/f"},
        {"name": "d/f", "type": "reg"},
        {"name": "c", "type": "char", "devMajor": 1, "devMinor": 3},
        {"name": "b", "type": "block", "devMajor": 1, "devMinor": 3},
        {"name": "p", "type": "fifo"},
        {"name": "d/.wh.gone", "type": "reg"},
        {"name": "d/.wh..wh..opq", "type": "reg"},
        {"name": ".no.prefetch.landmark", "type": "reg"},
    )
    yield json.dumps({"version": 1, "entries": rows}).encode()


def _toc(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        _use(parse_toc(data, _END, is_zstd=False))


def _use(toc: Toc) -> None:
    """Make the image of a TOC, and read it.

    Raises:
        FormatError: the TOC breaks a rule.
    """
    tree = to_tree(toc, opaque_xattr=OPAQUE, require_digests=False)
    end = 0
    for unit in tree.units:
        assert 0 <= unit.source_offset < unit.source_offset + unit.source_length <= toc.data_end
        assert unit.cache_offset >= end
        assert not unit.cache_offset % BLOCK
        end = unit.cache_offset + unit.cache_length
    assert end <= tree.cache_size
    out = io.BytesIO()
    try:
        write_image(tree.root, out, devices=[Device(-(-tree.cache_size // BLOCK))])
    except InvalidArgument:
        return
    for _path, node in (image := Image(BytesSource(out.getvalue()))).walk():
        image.xattrs(node)


def _blobs() -> Iterator[bytes]:
    yield make_blob(_FILES, 4096)
    yield make_blob(_FILES, 4096, shared=8192)
    yield make_chunked_blob(_FILES, 4096)


def _blob(data: bytes) -> None:
    source = BytesSource(data)
    with contextlib.suppress(FormatError):
        _use(read_toc(source, find_toc(source)))


TARGETS = {
    "footer": Target(_footers, _footer),
    "toc": Target(_tocs, _toc),
    "blob": Target(_blobs, _blob),
}

"""Checks overlaybd layers that other programs made: python -m tests.overlaybd_by_hand FOLDER.

Every file below FOLDER that is a layer, in a tar, a ZFile or neither, is read; so are those in a
`.tar.gz` that is a tar of files (as overlaybd's base layers come). Every block is verified, and
what the layer maps is read. Then the layer is written anew from its own mappings, the ZFile from
its uncompressed bytes, and the tar around it: it is said whether the bytes are the same. One
line is printed for each layer; the status is 1 if anything was wrong.
"""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from lamina.core.source import RangeSource
from lamina.errors import LaminaError
from lamina.formats.lsmt.reader import Layer, is_layer, read_layer
from lamina.formats.lsmt.stack import Stack
from lamina.formats.lsmt.writer import write_layer
from lamina.formats.tar import END_OF_ARCHIVE, Entry, header, padding
from lamina.formats.zfile import envelope
from lamina.formats.zfile.layout import SLOT, is_zfile, pack_record, parse_record
from lamina.formats.zfile.reader import ZFile, read_zfile
from lamina.formats.zfile.writer import ZFileOptions, ZFileWriter
from tests.erofs import Bytes

PIECE = 1 << 20


class Hash:
    """An output that is only hashed."""

    def __init__(self) -> None:
        self.found = hashlib.sha256()

    def write(self, data: bytes, /) -> int:
        self.found.update(data)
        return len(data)


def pieces(source: RangeSource) -> Iterator[bytes]:
    for offset in range(0, source.size, PIECE):
        yield source.read_at(offset, min(PIECE, source.size - offset))


def sum_of(source: RangeSource) -> str:
    found = hashlib.sha256()
    for piece in pieces(source):
        found.update(piece)
    return found.hexdigest()


def same(one: bool) -> str:
    return "the same" if one else "OTHERS"


def check(raw: bytes) -> str:
    """Return a line about a layer."""
    source = Bytes(raw)
    inner = envelope.unwrap(source)
    said = [f"{len(raw)} bytes", f"sha256 {hashlib.sha256(raw).hexdigest()}"]
    if isinstance(inner, envelope.Window):
        said.append(f"in a tar from byte {inner.offset} on")
        if inner.offset == envelope.HEADER_SIZE:
            said.append(f"tar header {same(envelope.header(inner.size) == raw[: inner.offset])}")
    else:
        said.append("as a tar with a plain header " + plain_tar(raw))
    layer: RangeSource = inner
    if is_zfile(inner.read_at(0, 24)):
        layer = read_zfile(inner)
        said += check_zfile(inner, layer)
    found = read_layer(layer)
    return ", ".join([*said, *check_layer(found)])


def plain_tar(raw: bytes) -> str:
    entry = Entry(envelope.NAME, mode=0o444, size=len(raw))
    return hashlib.sha256(
        header(entry) + raw + bytes(padding(len(raw))) + END_OF_ARCHIVE
    ).hexdigest()


def check_zfile(source: RangeSource, found: ZFile) -> list[str]:
    written = io.BytesIO()
    first = source.read_at(0, SLOT)
    record = parse_record(first, 0)
    complete = bool(record.flags & 8)
    options = ZFileOptions(found.algorithm, found.block_size, found.has_crc, complete)
    writer = ZFileWriter(written, options)
    for piece in pieces(found):
        writer.write(piece)
    writer.close()
    again = read_zfile(Bytes(written.getvalue()))
    assert sum_of(again) == sum_of(found)
    one, two = (
        [each.stored(block, block + 1)[1] for block in range(each.blocks)]
        for each in (again, found)
    )
    differing = sum(a != b for a, b in zip(one, two, strict=True))
    return [
        f"ZFile of {found.blocks} {found.algorithm.name} blocks, flags {record.flags:#x}, verified",
        f"its header {same(pack_record(record) == first)}",
        f"compressed again, {differing} blocks have other lengths",
    ]


def check_layer(found: Layer) -> list[str]:
    stack = Stack([found])
    read = sum(len(stack.read_at(one.offset, one.length)) for one in stack.extents())
    out = Hash()
    write_layer(out, found.mappings.extents(), [found.source], found.about)
    original = sum_of(found.source)
    return [
        f"LSMT of {found.source.size} bytes, sha256 {original}",
        f"{len(found.mappings)} mappings",
        f"device of {stack.size} bytes, {read} of them mapped",
        f"its first MiB {hashlib.sha256(stack.read_at(0, PIECE)).hexdigest()}",
        f"written anew {same(out.found.hexdigest() == original)}",
    ]


def layers(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.name.endswith(".tar.gz"):
            yield from members(path)
        else:
            yield str(path), path.read_bytes()


def members(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                yield f"{path} {member.name}", file.read()


def main() -> None:
    wrong = 0
    for name, raw in layers(Path(sys.argv[1])):
        try:
            if is_layer(Bytes(raw)):
                print(f"{name}: {check(raw)}")
        except (LaminaError, AssertionError) as error:
            wrong = 1
            print(f"{name}: WRONG: {error}")
    sys.exit(wrong)


if __name__ == "__main__":
    main()

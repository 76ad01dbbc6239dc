"""Checks RAFS images that other programs made: python -m tests.rafs_by_hand FOLDER [TREE].

Every bootstrap below FOLDER is read; its blobs are looked for there by their ids. Every chunk is
decompressed and verified, every table of contents and its entries too. Names and contents are
compared with a file `NAME.result` beside it (as `tree -J` prints names, then MD5 sums), and with
TREE, which the images were made of. One line is printed for each file; the status is 1 if anything
was wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lamina.errors import DataLoss, FormatError, LaminaError
from lamina.formats.erofs.reader import Image
from lamina.formats.erofs.tree import HOLE
from lamina.formats.rafs.blob_meta import BlobMeta, read_blob_meta
from lamina.formats.rafs.bootstrap import read_bootstrap, version_of
from lamina.formats.rafs.flags import BlobFeatures
from lamina.formats.rafs.model import Blob, Bootstrap, Inode
from lamina.formats.rafs.toc import IMAGE_BLOB, read_toc, read_toc_entry
from lamina.formats.rafs.tree import to_tree
from lamina.formats.rafs.units import Layout, lay_out_v5, lay_out_v6, needs_meta
from tests.erofs import Bytes
from tests.rafs_devices import filled

EXTERNAL = "image.external"
"""A bootstrap that the builder writes besides, without files as a rule."""
Content = Mapping[int, bytes]
"""Devices by number."""


def check(path: Path, folder: Path, tree: Path | None) -> str:
    """Return a line about a bootstrap."""
    raw = path.read_bytes()
    bootstrap = read_bootstrap(Bytes(raw))
    said = [f"version {bootstrap.version}", f"flags {int(bootstrap.flags):#x}"]
    names = _paths(bootstrap.root)
    said.append(f"{len(names)} names")
    said.append(f"{sum(len(inode.chunks) for inode in names.values())} chunks of files")
    result = path.with_name(path.name + ".result")
    listing = result.read_text() if result.exists() else ""
    if listing:
        said.append(_compare_listing(names, listing))
    blobs = {index: folder_file(folder, blob.id) for index, blob in enumerate(bootstrap.blobs)}
    missing = [bootstrap.blobs[index].id[:8] for index, found in blobs.items() if found is None]
    if missing:
        return ", ".join([*said, f"blobs {', '.join(missing)} not there"])
    data = {index: found.read_bytes() for index, found in blobs.items() if found}
    layout, devices = _devices(bootstrap, folder, data)
    units = sum(len(device.units) for device in layout.devices)
    pieces = sum(len(unit.pieces) for device in layout.devices for unit in device.units)
    said.append(f"{pieces} chunks in {units} units verified")
    if bootstrap.version == 6:
        said.append(_compare_extents(raw, bootstrap))
    if listing:
        said.append(_compare_sums(names, layout, devices, listing))
    if tree is not None and path.name != EXTERNAL:
        said.append(_compare_tree(bootstrap, layout, devices, names, tree))
    return ", ".join(said)


def folder_file(folder: Path, id: str) -> Path | None:
    return next((path for path in folder.rglob(id) if path.is_file()), None)


def _devices(bootstrap: Bootstrap, folder: Path, data: dict[int, bytes]) -> tuple[Layout, Content]:
    if bootstrap.version == 5:
        layout = lay_out_v5(bootstrap)
    elif any(blob.features & BlobFeatures.TARFS for blob in bootstrap.blobs):
        # Device and blob are the same.
        return Layout([], {}), {index + 1: body for index, body in data.items()}
    else:
        metas = {
            index: _meta(blob, folder, data[index]) for index, blob in enumerate(bootstrap.blobs)
        }
        layout = lay_out_v6(bootstrap, {index: meta for index, meta in metas.items() if meta})
        if not any(map(needs_meta, bootstrap.blobs)):
            assert layout == lay_out_v6(bootstrap), "blob.meta says other than the chunk table"
    return layout, dict(enumerate(filled(layout, bootstrap, data), 1))


def _meta(blob: Blob, folder: Path, data: bytes) -> BlobMeta | None:
    source = Bytes(data)
    if blob.features & BlobFeatures.SEPARATE:
        found = folder_file(folder, blob.meta_digest.hex())
        assert found is not None, f"blob {blob.meta_digest.hex()} with blob.meta is missing"
        source = Bytes(found.read_bytes())
    if blob.features & BlobFeatures.HAS_TOC:
        for entry in read_toc(source, blob.toc_digest).values():
            if entry.name != IMAGE_BLOB:
                read_toc_entry(source, entry)
    if not blob.meta:
        return None
    try:
        return read_blob_meta(source, blob)
    except FormatError as error:
        if needs_meta(blob):
            raise
        print(f"  blob.meta of {blob.id[:8]}: {error}")
        return None


def _compare_extents(raw: bytes, bootstrap: Bootstrap) -> str:
    """Compare chunks with what the kernel makes of the same inodes."""
    image = Image(Bytes(raw))
    names = _paths(bootstrap.root)
    for path, node in image.walk():
        if not node.is_regular:
            continue
        seen = {}
        position = 0
        for length, device, offset in image.extents(node):
            if device != HOLE:
                seen[position] = (device, offset, length)
            position += length
        merged: list[list[int]] = []
        for start, chunk in names[path.decode(errors="surrogateescape")].chunks:
            device, place = chunk.blob + 1, chunk.uncompressed_offset
            last = merged[-1] if merged else None
            if last and last[1] == device and last[2] + last[3] == place:
                last[3] += chunk.uncompressed_size
            else:
                merged.append([start, device, place, chunk.uncompressed_size])
        assert seen == {start: tuple(rest) for start, *rest in merged}, path
    return "extents as the kernel's"


def _compare_tree(
    bootstrap: Bootstrap,
    layout: Layout,
    devices: Content,
    names: Mapping[str, Inode],
    tree: Path,
) -> str:
    expected = {"/": tree}
    for path in tree.rglob("*"):
        expected["/" + str(path.relative_to(tree))] = path
    assert set(names) == set(expected), set(names) ^ set(expected)
    if not layout.devices:
        places = {
            found.chunk: (found.chunk.blob + 1, found.chunk.uncompressed_offset)
            for inode in names.values()
            for found in inode.chunks
        }
        layout = Layout([], places)
    to_tree(bootstrap, layout)
    size = 0
    for key, inode in names.items():
        path = expected[key]
        status = path.lstat()
        assert inode.mode == status.st_mode, (key, oct(inode.mode), oct(status.st_mode))
        if key != "/" and bootstrap.version == 5:
            assert inode.mtime == status.st_mtime_ns, key
        if inode.is_regular:
            body = _content(inode, layout, devices)
            assert body == path.read_bytes(), key
            size += len(body)
        elif stat.S_ISLNK(inode.mode):
            assert inode.target == os.fsencode(path.readlink()), key
        elif not inode.is_directory:
            assert inode.rdev == status.st_rdev, key
        found = {os.fsencode(name) for name in os.listxattr(path, follow_symlinks=False)}
        assert set(inode.xattrs) == found, (key, inode.xattrs, found)
    return f"{size} bytes of files as in the tree"


def _content(inode: Inode, layout: Layout, devices: Content) -> bytes:
    body = bytearray(inode.size)
    for offset, chunk in inode.chunks:
        device, place = layout.places[chunk]
        size = chunk.uncompressed_size
        body[offset : offset + size] = devices[device][place : place + size]
    return bytes(body)


def _paths(root: Inode) -> dict[str, Inode]:
    found = {"/": root}
    waiting = [("", root)]
    while waiting:
        path, inode = waiting.pop()
        for name, child in inode.children.items():
            key = path + "/" + os.fsdecode(name)
            found[key] = child
            waiting.append((key, child))
    return found


def _described(inode: Inode) -> str:
    if inode.is_directory:
        return "directory"
    return "link" + os.fsdecode(inode.target) if stat.S_ISLNK(inode.mode) else "file"


def _compare_listing(names: Mapping[str, Inode], listing: str) -> str:
    decoded, _end = json.JSONDecoder().raw_decode(listing)
    listed = _listed(decoded[0], "")
    assert {key: _described(inode) for key, inode in names.items()} == listed
    return "names, types and targets as listed"


def _compare_sums(
    names: Mapping[str, Inode], layout: Layout, devices: Content, listing: str
) -> str:
    lines = [line.split("  ", 1) for line in listing.splitlines() if line[:1].isalnum()]
    for expected, key in lines:
        body = _content(names[key], layout, devices)
        assert hashlib.md5(body, usedforsecurity=False).hexdigest() == expected, key
    assert lines
    return f"{len(lines)} files with the sums listed"


def _listed(entry: dict[str, Any], path: str) -> dict[str, str]:
    found = {path or "/": entry["type"] + entry.get("target", "")}
    for child in entry.get("contents", []):
        found |= _listed(child, f"{path}/{child['name']}")
    return found


def _is_bootstrap(path: Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(4096)
    try:
        version_of(Bytes(head))
    except FormatError:
        return False
    return True


def _blob(path: Path) -> str:
    source = Bytes(path.read_bytes())
    try:
        toc = read_toc(source)
    except DataLoss:
        return "no table of contents"
    for entry in toc.values():
        if entry.name != IMAGE_BLOB:
            read_toc_entry(source, entry)
    return "a blob: " + ", ".join(toc)


def main() -> None:
    folder = Path(sys.argv[1])
    tree = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    failed = False
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or (tree is not None and tree in path.parents):
            continue
        try:
            line = check(path, folder, tree) if _is_bootstrap(path) else _blob(path)
        except (LaminaError, AssertionError) as error:
            failed = True
            line = f"WRONG: {type(error).__name__}: {error}"
        print(f"{path.relative_to(folder)}: {line}")
    sys.exit(failed)


if __name__ == "__main__":
    main()

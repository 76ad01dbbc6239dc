"""A lazy layer: its TOC read and checked, its metadata an image, its data a cache to be filled."""

from __future__ import annotations

import stat
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from lamina.core.digest import parse_digest
from lamina.formats.erofs.tree import BLOCK, Inode
from lamina.formats.erofs.writer import Device, write_image
from lamina.formats.estargz.tree import LayerTree, to_tree
from lamina.layer.lower import LowerLayers
from lamina.lazy.layer import LayerFile, create_layer
from lamina.lazy.sources.description import RegistryDescription
from lamina.lazy.table import Header, UnitColumns
from lamina.lazy.unit import Check, Codec
from lamina.snapshotters.lazy_access import Access
from lamina.snapshotters.lazy_blobs import (
    login_hint,
    open_source,
    size_in_manifest,
    size_in_registry,
)
from lamina.snapshotters.stargz.origin import Origin, Verification
from lamina.snapshotters.stargz.toc import read_layer_toc

_CHECKS = bytes.maketrans(b"\0\1", bytes((Check.NONE, Check.SHA256)))
_OPAQUE = b"trusted.overlay.opaque"


class Contents(NamedTuple):
    """A layer whose table of contents was read, and is what it has to be."""

    blob: RegistryDescription
    codec: Codec
    tree: LayerTree


def read_contents(
    access: Access, origin: Origin, verification: Verification, below: Sequence[Path]
) -> Contents:
    """Read and check the table of contents.

    Args:
        access: how to reach the registry.
        origin: which blob it is in.
        verification: what the configuration lets pass.
        below: lower directories, nearest first, that tell of directories without an entry.

    Raises:
        FormatError, DigestMismatch, FailedPrecondition, LaminaError: as `read_layer_toc`.
    """
    with login_hint():
        blob = RegistryDescription(origin.reference, origin.digest, _size(access, origin))
        source = open_source(access, blob)
        toc, checked = read_layer_toc(access, origin, source, verification)
    with ExitStack() as stack:
        lower = LowerLayers(stack, below)
        tree = to_tree(toc, opaque_xattr=_OPAQUE, require_digests=checked, implied=lower.directory)
    _leave_as_unpacked(tree.root)
    return Contents(blob, Codec.ZSTD if toc.is_zstd else Codec.GZIP, tree)


def write_metadata(contents: Contents, path: Path) -> None:
    """Write the image whose only device is the cache file."""
    tree = contents.tree
    devices = [Device(tree.cache_size // BLOCK)] if tree.cache_size else []
    with path.open("xb") as out:
        write_image(tree.root, out, devices=devices, flat=True)


def make_cache(contents: Contents, directory: Path, gate: str) -> None:
    """Make the directory of the cache, with nothing in it yet."""
    columns = contents.tree.units.columns()
    codecs = array("B", (contents.codec,)) * len(columns.source_offset)
    checks = array("B", columns.has_digest.tobytes().translate(_CHECKS))
    units = UnitColumns(*columns[:5], codecs, *columns[5:8], checks, columns.digests)
    header = Header(contents.blob.size, contents.tree.cache_size)
    create_layer(directory, LayerFile(contents.blob, gate), header, units)


def _leave_as_unpacked(root: Inode) -> None:
    """Make the root of a layer what it is where the layer is unpacked, whatever its entry says.

    As containerd's, unpacking passes over that: the root is a snapshot's own directory.
    """
    root.mode, root.uid, root.gid, root.mtime = stat.S_IFDIR | 0o755, 0, 0, 0
    root.xattrs = {name: value for name, value in root.xattrs.items() if name == _OPAQUE}


def _size(access: Access, origin: Origin) -> int:
    if origin.size:
        return origin.size
    if not origin.manifest:
        return size_in_registry(access, origin.reference, origin.digest)
    manifest = parse_digest(origin.manifest)
    return size_in_manifest(access, origin.reference, manifest, origin.digest)

"""RAFS as the kernel mounts it: version 6 as it is, version 5 as an image of its inodes."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest

from lamina.formats.erofs.tree import BLOCK
from lamina.formats.erofs.writer import Device, write_image
from lamina.formats.rafs.bootstrap import read_bootstrap
from lamina.formats.rafs.tree import to_tree
from lamina.formats.rafs.units import lay_out_v5, lay_out_v6
from tests.erofs import Bytes, mounted_image
from tests.rafs import Made, described, sample
from tests.rafs_blobs import LZ4, ZSTD
from tests.rafs_devices import filled, metas
from tests.rafs_v5 import make_v5
from tests.rafs_v6 import make_v6

pytestmark = [pytest.mark.root, pytest.mark.erofs]


def seen(root: Path) -> dict[bytes, object]:
    """Return what `tests.rafs.described` does, of a mount."""
    found: dict[bytes, object] = {}
    names: dict[int, bytes] = {}

    def visit(path: Path, key: bytes) -> None:
        status = path.lstat()
        mode = status.st_mode
        data = path.read_bytes() if stat.S_ISREG(mode) else b""
        target = os.fsencode(path.readlink()) if stat.S_ISLNK(mode) else b""
        first = names.setdefault(status.st_ino, key)
        head = (first, mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_rdev)
        found[key] = (*head, data, target, xattrs(path))
        if stat.S_ISDIR(mode):
            for child in sorted(path.iterdir()):
                visit(child, key + b"/" + os.fsencode(child.name))

    visit(root, b"")
    return found


def xattrs(path: Path) -> Mapping[bytes, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names}


def without_steering(root: Made) -> Made:
    """Take away what an image of Lamina's own leaves out."""
    root.children[b"!before-dots"].children[b"b"].children[b"c"].xattrs = {}
    return root


def put_devices(directory: Path, contents: list[bytes]) -> list[Path]:
    paths = []
    for number, content in enumerate(contents, 1):
        paths.append(directory / f"device{number}")
        paths[-1].write_bytes(content)
    return paths


def test_version_6_is_mounted_as_it_is(tmp_path: Path) -> None:
    raw, blob = make_v6(sample(), compressor=ZSTD, batch=8192)
    bootstrap = read_bootstrap(Bytes(raw))
    layout = lay_out_v6(bootstrap, metas(bootstrap, blob))
    devices = put_devices(tmp_path, filled(layout, bootstrap, {0: blob}))
    image = tmp_path / "image.boot"
    image.write_bytes(raw)
    with mounted_image(image, tmp_path / "mnt", devices) as root:
        assert seen(root) == described(sample())


def test_a_tar_is_mounted_as_its_device(tmp_path: Path) -> None:
    raw, tar = make_v6(sample(), tar=True)
    devices = put_devices(tmp_path, [tar])
    image = tmp_path / "image.boot"
    image.write_bytes(raw)
    with mounted_image(image, tmp_path / "mnt", devices) as root:
        assert seen(root) == described(sample())


def test_version_5_is_mounted_as_an_image_of_its_inodes(tmp_path: Path) -> None:
    raw, blob = make_v5(sample(), compressor=LZ4)
    bootstrap = read_bootstrap(Bytes(raw))
    layout = lay_out_v5(bootstrap)
    devices = put_devices(tmp_path, filled(layout, bootstrap, {0: blob}))
    image = tmp_path / "image"
    with open(image, "wb") as out:
        table = [Device(device.size // BLOCK) for device in layout.devices]
        write_image(to_tree(bootstrap, layout), out, devices=table)
    with mounted_image(image, tmp_path / "mnt", devices) as root:
        assert seen(root) == described(without_steering(sample()))

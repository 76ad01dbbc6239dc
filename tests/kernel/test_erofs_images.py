"""Images as the kernel and erofs-utils read them."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.formats.erofs.tree import BLOCK, HOLE, Extent, Inode
from tests.erofs import (
    Data,
    described,
    directory,
    everything,
    make_image,
    mounted_image,
    regular,
)
from tests.erofs_trees import trees
from tests.trees import describe

pytestmark = [pytest.mark.root, pytest.mark.erofs]


def check(where: Path, root: Inode, data: Data, *, flat: bool = False) -> None:
    """Compare every entry of the mount with the tree."""
    image = make_image(where, root, data, flat=flat)
    with mounted_image(image.path, where / "at", image.devices) as at:
        assert describe(at) == described(root, data)


def test_everything(tmp_path: Path) -> None:
    data = Data(2)
    root = everything(data)
    check(tmp_path, root, data)
    image = make_image(tmp_path, root, data)
    with mounted_image(image.path, tmp_path / "at", image.devices) as at:
        assert os.getxattr(at / "xattrs/opaque", "trusted.overlay.opaque") == b"y"
        assert (at / "links/a").stat().st_nlink == 3
        assert (at / "links").stat().st_nlink == 3
        assert at.stat().st_nlink == 2 + sum(c.is_directory for c in root.children.values())
        assert os.stat(at / "links/sub/..").st_ino == os.stat(at / "links").st_ino
        assert os.stat(at / "..").st_dev != os.stat(at).st_dev
        assert os.statvfs(at).f_ffree == -1 - image.written.inodes


def test_without_chunks(tmp_path: Path) -> None:
    data = Data(3)
    root = everything(data)
    check(tmp_path, root, data, flat=True)


def test_without_devices(tmp_path: Path) -> None:
    data = Data(0)
    root = directory(
        {
            b"plain": regular(data.put(b"plain" * 3000, 0)),
            b"holes": regular(data.put(bytes(BLOCK), 0), Extent(BLOCK, HOLE, 0)),
            b"xattr": regular(data.put(b"x", 0), xattrs={b"user.a": b"b"}),
        }
    )
    check(tmp_path, root, data)


def test_empty_root(tmp_path: Path) -> None:
    check(tmp_path, directory(mode=stat.S_IFDIR | 0o700, uid=5), Data(0))


@pytest.mark.parametrize("devices", [23, 24, 120])
def test_many_devices(tmp_path: Path, devices: int) -> None:
    data = Data(devices)
    children = {
        b"%d" % number: regular(data.put(b"on %d" % number, number))
        for number in range(1, devices + 1)
    }
    all_of_them = [data.put(bytes([number]) * BLOCK, number) for number in range(1, devices + 1)]
    own = regular(data.put(b"own", 0))
    check(tmp_path, directory({**children, b"all": regular(*all_of_them), b"own": own}), data)


def test_directory_of_20000_names(tmp_path: Path) -> None:
    names = [b"%d-%s" % (n, b"n" * (n * n % 180)) for n in range(20_000)]
    child = regular()
    root = directory({b"large": directory(dict.fromkeys(names, child))})
    image = make_image(tmp_path, root, Data(0))
    with mounted_image(image.path, tmp_path / "at") as at:
        large = os.fsencode(at / "large")
        assert sorted(os.listdir(large)) == sorted(names)
        numbers = {os.lstat(b"%s/%s" % (large, name)).st_ino for name in names}
        assert len(numbers) == 1
        assert not os.path.lexists(large + b"/20000-")
        assert (at / "large" / os.fsdecode(names[7])).stat().st_nlink == 20_000


def test_directories_of_all_sizes(tmp_path: Path) -> None:
    """Around the borders at which a name or an inode goes to the next block."""
    root = directory()
    for size in range(3900, 4138):
        names = [b"%03d" % n + b"x" * 47 for n in range(62)]
        used = 2 * 12 + 3 + 62 * (12 + 50)
        names.append(b"~" * (size - used - 12))
        root.children[b"%d" % size] = directory({name: regular() for name in names})
    check(tmp_path, root, Data(0))


def test_100000_inodes(tmp_path: Path) -> None:
    data = Data()
    extent = data.put(b"content")
    root = directory()
    for number in range(100):
        files = {b"file%d" % n: regular(extent, mtime=n) for n in range(999)}
        root.children[b"%d" % number] = directory(files, xattrs={b"user.number": b"%d" % number})
    image = make_image(tmp_path, root, data)
    assert image.written.inodes == 100_001
    with mounted_image(image.path, tmp_path / "at", image.devices) as at:
        assert len(os.listdir(at)) == 100
        for number in range(100):
            with os.scandir(at / str(number)) as entries:
                found = {entry.name: entry.stat().st_mtime_ns for entry in entries}
            assert found == {f"file{n}": n for n in range(999)}
        assert (at / "77/file998").read_bytes() == b"content"


@settings(max_examples=100)
@given(st.data())
def test_any_tree(draw: st.DataObject) -> None:
    data = Data(2)
    root = draw.draw(trees(data))
    with tempfile.TemporaryDirectory() as name:
        check(Path(name), root, data)

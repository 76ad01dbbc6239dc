"""Images that erofs-utils makes, as the reader finds them."""

from __future__ import annotations

import io
import os
import socket
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from lamina.errors import FormatError
from lamina.formats.erofs.reader import Image
from lamina.formats.erofs.tree import BLOCK, HOLE, Inode
from lamina.formats.erofs.writer import Device, write_image
from tests.erofs import (
    ACL,
    CAPABILITY,
    Bytes,
    Data,
    described,
    mounted_image,
)
from tests.erofs_by_hand import DEVICES, INDEX, by_hand, put_inode
from tests.trees import describe

pytestmark = [pytest.mark.root, pytest.mark.erofs_utils]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with everything that an image can have."""
    root = tmp_path_factory.mktemp("source")
    for name, size in {"empty": 0, "one": 1, "tail": 50_001, "blocks": 3 * BLOCK}.items():
        (root / name).write_bytes(os.urandom(size))
    (root / "same").write_bytes((root / "tail").read_bytes())
    with open(root / "sparse", "wb") as file:
        file.write(b"begin")
        file.truncate(300_000)
    (root / "a/b/c").mkdir(parents=True)
    os.link(root / "tail", root / "a/b/link")
    (root / "short").symlink_to("a/b")
    (root / "long").symlink_to("t" * 4000)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o600, os.makedev(259, 70_000))
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "a/socket"))
    (root / "many").mkdir()
    for number in range(1500):
        (root / f"many/{number}-{'n' * (number * number % 180)}").touch()
    for name in ("one", "tail", "same", "blocks", "a"):
        os.setxattr(root / name, "user.in-common", b"v" * 40)
    os.setxattr(root / "a/b", "trusted.own", b"")
    os.setxattr(root / "one", "system.posix_acl_access", ACL)
    os.chown(root / "same", 70_000, 5)
    os.setxattr(root / "tail", "security.capability", CAPABILITY)
    os.utime(root / "one", ns=(0, -(10**18) - 5))
    return root


def make(source: Path, image: Path, *options: str) -> None:
    command = ("mkfs.erofs", "--quiet", *options, str(image), str(source))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def with_data(paths: Sequence[Path]) -> Data:
    """Return the data of an image and its devices."""
    data = Data(len(paths) - 1)
    data.devices = [bytearray(path.read_bytes()) for path in paths]
    return data


@pytest.mark.parametrize(
    ("options", "extra"),
    [
        ((), False),
        (("-Enoinline_data",), False),
        (("-Eforce-inode-extended",), False),
        (("-x1",), False),
        (("-x-1",), False),
        (("--chunksize=4096",), False),
        (("--chunksize=65536",), False),
        (("--chunksize=8192", "-Eforce-chunk-indexes"), False),
        (("--chunksize=4096",), True),
        (("--chunksize=65536",), True),
    ],
)
def test_image_of_mkfs(source: Path, tmp_path: Path, options: Sequence[str], extra: bool) -> None:
    paths = [tmp_path / "image", *([tmp_path / "device"] if extra else [])]
    make(source, paths[0], *options, *(f"--blobdev={path}" for path in paths[1:]))
    first, *devices = (Bytes(path.read_bytes()) for path in paths)
    image = Image(first, devices)
    expected = describe(source)
    if "-x-1" in options:
        expected = {name: entry._replace(xattrs={}) for name, entry in expected.items()}
    root = image.tree()
    assert described(root, with_data(paths)) == expected
    for path, node in image.walk():
        status = (source / os.fsdecode(path[1:])).lstat()
        assert (node.nlink, node.size) == (status.st_nlink, _size(status, node.size))
        assert image.lookup(path) == node
        if node.is_regular:
            assert image.read(node, 0, node.size) == (source / os.fsdecode(path[1:])).read_bytes()
    assert _devices(root) - {HOLE} == {1 if extra else 0}


def _size(status: os.stat_result, size: int) -> int:
    """Return what a size must be; that of directories is each filesystem's own."""
    return status.st_size if stat.S_IFMT(status.st_mode) in {stat.S_IFREG, stat.S_IFLNK} else size


def _devices(inode: Inode) -> set[int]:
    found = {extent.device for extent in inode.extents}
    return found.union(*(_devices(child) for child in inode.children.values()))


def test_a_tree_read_is_a_tree_to_write(source: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "image", tmp_path / "device"]
    make(source, paths[0], "--chunksize=4096", f"--blobdev={paths[1]}")
    tree = Image(Bytes(paths[0].read_bytes())).tree()
    out = io.BytesIO()
    write_image(tree, out, devices=[Device(paths[1].stat().st_size // BLOCK)])
    again = Image(Bytes(out.getvalue()), [Bytes(paths[1].read_bytes())]).tree()
    assert described(again, with_data(paths)) == describe(source)


def test_compression_is_refused(source: Path, tmp_path: Path) -> None:
    make(source, tmp_path / "image", "-zlz4")
    with pytest.raises(FormatError, match="compress"):
        Image(Bytes((tmp_path / "image").read_bytes())).tree()


@pytest.mark.erofs
def test_the_kernel_reads_the_same(tmp_path: Path) -> None:
    """Of what no writer here makes: the reader's idea of it is the kernel's."""
    image = by_hand()
    # Linux knows the flag for one link from 6.15 on only.
    put_inode(image, INDEX, 4 << 1, 0o100644, 1, 600, 0x21)
    files = [tmp_path / name for name in ("image", "d1", "d2")]
    for file, content in zip(files, (bytes(image), *DEVICES), strict=True):
        file.write_bytes(content)
    opened = Image(Bytes(image), [Bytes(device) for device in DEVICES])
    with mounted_image(files[0], tmp_path / "at", files[1:]) as at:
        assert sorted(os.listdir(at)) == ["chunks", "index", "tail"]
        for path, node in opened.walk():
            found = at / os.fsdecode(path[1:])
            status = found.lstat()
            assert (status.st_ino, status.st_size) == (node.nid, node.size)
            assert (status.st_mode, status.st_nlink) == (node.mode, node.nlink)
            assert (status.st_uid, status.st_gid) == (node.uid, node.gid)
            if node.is_regular:
                assert opened.read(node, 0, node.size) == found.read_bytes()

"""Trees for EROFS images with data for their files, and what a mount of such an image shows."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lamina.formats.erofs.tree import BLOCK, HOLE, Extent, Inode
from lamina.formats.erofs.writer import Device, Written, reserved_blocks, write_image
from lamina.linux import mountapi
from tests.trees import Entry

CAPABILITY = b"\1\0\0\2\0\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
"""cap_net_bind_service+ep, VFS_CAP_REVISION_2."""
ACL = bytes.fromhex(
    "02000000"
    "01000600ffffffff"  # user::rw-
    "02000400e8030000"  # user:1000:r--
    "04000400ffffffff"  # group::r--
    "10000400ffffffff"  # mask::r--
    "20000000ffffffff"  # other::---
)


class Data:
    """The data of files: bytes of the image (device 0) and of extra devices."""

    def __init__(self, devices: int = 1) -> None:
        self._first = reserved_blocks(devices) * BLOCK
        self.devices = [bytearray(self._first), *(bytearray() for _ in range(devices))]

    def put(self, data: bytes, device: int = 1) -> Extent:
        """Append to a device."""
        area = self.devices[device]
        extent = Extent(len(data), device, len(area))
        area += data + bytes(-len(data) % BLOCK)
        return extent

    @property
    def first_block(self) -> int:
        size = len(self.devices[0])
        return size // BLOCK if size > self._first else 0

    def content(self, inode: Inode) -> bytes:
        return b"".join(
            bytes(length) if device == HOLE else self.devices[device][offset : offset + length]
            for length, device, offset in inode.extents
        )


class Bytes:
    """A source of bytes in memory that counts how often it is asked."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = bytes(data)
        self.size = len(data)
        self.reads = 0

    def read_at(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size
        self.reads += 1
        return self.data[offset : offset + length]


class Image(NamedTuple):
    """Files of an image."""

    path: Path
    devices: list[Path]
    written: Written


def make_image(directory: Path, root: Inode, data: Data, *, flat: bool = False) -> Image:
    """Write an image and its devices."""
    directory.mkdir(exist_ok=True)
    paths = []
    for number, content in enumerate(data.devices[1:], 1):
        paths.append(directory / f"d{number}")
        paths[-1].write_bytes(content)
    devices = [Device(len(content) // BLOCK, b"tag") for content in data.devices[1:]]
    with open(directory / "image", "wb") as out:
        if data.first_block:
            out.write(data.devices[0])
        written = write_image(root, out, devices=devices, first_block=data.first_block, flat=flat)
    assert (directory / "image").stat().st_size == written.blocks * BLOCK
    return Image(directory / "image", paths, written)


@contextmanager
def mounted_image(image: Path, at: Path, devices: Sequence[Path] = ()) -> Iterator[Path]:
    """Mount the file itself, without a loop device."""
    at.mkdir(exist_ok=True)
    data = ",".join(f"device={path}" for path in devices)
    if len(data) <= mountapi.DATA_MAX:
        mountapi.mount(image, at, "erofs", mountapi.MS_RDONLY, data)
    else:
        _mount_with_many(image, at, devices)
    try:
        yield at
    finally:
        mountapi.umount2(at)


def _mount_with_many(image: Path, at: Path, devices: Sequence[Path]) -> None:
    fs_fd = mountapi.fsopen("erofs")
    try:
        mountapi.fsconfig_string(fs_fd, "source", str(image))
        mountapi.fsconfig_flag(fs_fd, "ro")
        for path in devices:
            mountapi.fsconfig_string(fs_fd, "device", str(path))
        mountapi.fsconfig_create(fs_fd)
        mount_fd = mountapi.fsmount(fs_fd)
    finally:
        os.close(fs_fd)
    target_fd = os.open(at, os.O_PATH | os.O_DIRECTORY)
    try:
        mountapi.move_mount(mount_fd, target_fd)
    finally:
        os.close(mount_fd)
        os.close(target_fd)


def fsck(image: Path, devices: Sequence[Path] = (), *, extract: bool = True) -> None:
    """Let the filesystem's own tool find fault with it, down to the data unless told otherwise."""
    command = shutil.which("fsck.erofs")
    assert command is not None
    options = [f"--device={path}" for path in devices]
    if extract:
        options.append("--extract")
    done = subprocess.run((command, *options, image), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def described(root: Inode, data: Data) -> dict[str, Entry]:
    """Return what `tests.trees.describe` is to find."""
    first_names: dict[Inode, str] = {}
    found = {}
    for name, inode in sorted(_walk(root, b""), key=lambda item: item[0]):
        text = os.fsdecode(name)
        first = text if inode.is_directory else first_names.setdefault(inode, text)
        found[text] = Entry(
            stat.filemode(inode.mode),
            (inode.uid, inode.gid),
            inode.mtime,
            _content(inode, data),
            first,
            {
                os.fsdecode(key): value
                for key, value in inode.xattrs.items()
                if not key.startswith(b"trusted.overlay.")
            },
        )
    return found


def _walk(inode: Inode, path: bytes) -> Iterator[tuple[bytes, Inode]]:
    yield path or b".", inode
    for name, child in inode.children.items():
        yield from _walk(child, path + b"/" + name if path else name)


def _content(inode: Inode, data: Data) -> str:
    if inode.is_regular:
        return hashlib.sha256(data.content(inode)).hexdigest()
    if stat.S_ISLNK(inode.mode):
        return os.fsdecode(inode.target)
    return f"{os.major(inode.rdev)}:{os.minor(inode.rdev)}"


def directory(children: dict[bytes, Inode] | None = None, **values: object) -> Inode:
    inode = Inode(stat.S_IFDIR | 0o755, children=children or {})
    return _with(inode, values)


def regular(*extents: Extent, **values: object) -> Inode:
    size = sum(extent.length for extent in extents)
    return _with(Inode(stat.S_IFREG | 0o644, size=size, extents=extents), values)


def symlink(target: bytes, **values: object) -> Inode:
    return _with(Inode(stat.S_IFLNK | 0o777, target=target), values)


def _with(inode: Inode, values: dict[str, object]) -> Inode:
    for name, value in values.items():
        setattr(inode, name, value)
    return inode


def everything(data: Data) -> Inode:
    """Return a tree with everything that an image can have; `data` has 2 devices."""
    block = os.urandom(BLOCK)
    linked = regular(data.put(b"linked" * 2000), mode=0o100600)
    many = {b"user.a": b"1", b"user.b": b"", b"trusted.c": bytes(range(256)) * 8}
    names = (b"!before", b"-", b"..x", b"...", b".hidden", b"\xff\xfe", b"z" * 255, b"\n")
    numbers = {
        b"seconds": 1_600_000_000_000_000_000,
        b"nanoseconds": 1_600_000_000_123_456_789,
        b"before": -1,
        b"long-before": -(10**18) - 5,
        b"far": 2**33 * 10**9 + 999_999_999,
    }
    files = {
        b"empty": regular(),
        b"one": regular(data.put(b"x")),
        b"block": regular(data.put(block)),
        b"second": regular(data.put(b"two" * 5000, 2)),
        b"inside": regular(data.put(b"own" * 5000, 0)),
        b"inside2": regular(data.put(block, 0), mtime=7),
        b"parts": regular(data.put(block * 4), data.put(block * 4, 2), data.put(b"end", 1)),
        b"mixed": regular(data.put(block * 2, 0), data.put(block * 2, 1), data.put(b"e" * 50, 0)),
        b"hole-first": regular(Extent(3 * BLOCK, HOLE, 0), data.put(block)),
        b"hole-last": regular(data.put(block), Extent(5 * BLOCK + 17, HOLE, 0)),
        b"hole-between": regular(data.put(block), Extent(BLOCK, HOLE, 0), data.put(b"end")),
        b"all-hole": regular(Extent(10 * BLOCK + 1, HOLE, 0)),
        b"backwards": regular(
            *[data.put(b"%03d" % n * 1024 + block[:1024]) for n in range(700)][::-1]
        ),
    }
    nodes = {
        b"null": Inode(stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3)),
        b"disk": Inode(stat.S_IFBLK | 0o660, 0, 6, rdev=os.makedev(4095, (1 << 20) - 1)),
        b"fifo": Inode(stat.S_IFIFO | 0o600),
        b"socket": Inode(stat.S_IFSOCK | 0o600),
        b"whiteout": Inode(stat.S_IFCHR),
    }
    return directory(
        {
            b"names": directory({name: regular(data.put(name)) for name in names}),
            b"times": directory({name: regular(mtime=mtime) for name, mtime in numbers.items()}),
            b"files": directory(files, mode=stat.S_IFDIR | 0o1777),
            b"nodes": directory(nodes, uid=2**32 - 2, gid=70_000),
            b"links": directory({b"a": linked, b"b": linked, b"sub": directory({b"c": linked})}),
            b"owned": regular(uid=65_536, gid=1, mode=0o106755),
            b"symlinks": directory(
                {b"%d" % size: symlink(b"t" * size) for size in (1, 100, 3900, 4031, 4032, 4095)}
            ),
            b"xattrs": directory(
                {
                    b"capable": regular(xattrs={b"security.capability": CAPABILITY}),
                    b"acl": regular(xattrs={b"system.posix_acl_access": ACL}, mode=0o100640),
                    b"same1": regular(xattrs=many),
                    b"same2": directory(xattrs=many),
                    b"same3": regular(data.put(block * 3, 2), xattrs={**many, b"user.own": b"3"}),
                    b"large": symlink(b"t", xattrs={b"trusted.t": b"v" * 65_535}),
                    b"three": directory(
                        {b"x": regular()}, xattrs={b"user.%d" % n: b"v" * 60_000 for n in range(3)}
                    ),
                    b"many1": regular(xattrs={b"user.%03d" % n: b"value" for n in range(300)}),
                    b"many2": regular(xattrs={b"user.%03d" % n: b"value" for n in range(300)}),
                    b"opaque": directory(xattrs={b"trusted.overlay.opaque": b"y"}),
                }
            ),
        },
        mtime=42,
    )

"""What works in a directory on this machine, found out by doing it there.

Each probe works in a new directory below the given one, takes everything back, and returns None
when it worked, else the reason in a few words.
"""

from __future__ import annotations

import errno
import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lamina.core.mount import escape_option
from lamina.linux import mountapi as api
from lamina.linux.reflink import clone_file

_MAP = "0 100000 65536\n"
EROFS_SIZE = 8192
EROFS_NAME = "here"
EROFS_IMAGE = (
    (1024, "e2e1f5e0f2d20445030000000c00010002"),
    (1060, "0200000001"),
    (
        4128,
        "04000000ed4102002b00000000000000000000000100000000000000000000000100000000000000"
        "240002000100000000000000250002000400000000000000270001002e2e2e68657265",
    ),
    (4228, "2481010000000000000000000000000002"),
)
"""Offset and bytes of all but the zeros of an EROFS image: a directory with one empty file.

As `lamina.formats.erofs` writes it, which this module may not import, nor `plugins ls` wait for.
"""


def _probe(body: Callable[[Path], None]) -> Callable[[Path], str | None]:
    @functools.wraps(body)
    def probe(directory: Path) -> str | None:
        try:
            with _workspace(directory) as place:
                body(place)
        except OSError as error:
            return error.strerror or str(error)
        return None

    return probe


@contextmanager
def _workspace(directory: Path) -> Iterator[Path]:
    """Make a directory for the time of the body; `tempfile` costs more to import than a probe."""
    place = directory / f"probe-{os.getpid()}-{threading.get_ident()}"
    place.mkdir(mode=0o700)
    try:
        yield place
    finally:
        for path in sorted(place.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        place.rmdir()


@_probe
def overlay(directory: Path) -> None:
    """Mount an overlay with an upper directory there."""
    _overlay(directory, "")


@_probe
def overlay_userxattr(directory: Path) -> None:
    """Mount an overlay that keeps its marks in `user.` attributes (>= 5.11)."""
    _overlay(directory, ",userxattr")


@_probe
def overlay_on_idmapped(directory: Path) -> None:
    """Mount an overlay on an id-mapped lower directory (>= 5.19)."""
    from lamina.linux.userns import new_user_namespace  # starts a process

    lower, mapped = directory / "source", directory / "lower"
    lower.mkdir()
    mapped.mkdir()
    userns = new_user_namespace(_MAP, _MAP)
    try:
        copy = api.open_tree(lower)
        try:
            api.mount_setattr(copy, userns_fd=userns)
            target = os.open(mapped, os.O_PATH | os.O_CLOEXEC)
            try:
                api.move_mount(copy, target)
            finally:
                os.close(target)
        finally:
            os.close(copy)
    finally:
        os.close(userns)
    with _unmounted(mapped):
        _overlay(directory, "")


@_probe
def loop(directory: Path) -> None:
    """Bind a file there to a loop device."""
    from lamina.linux import loop as loop_device  # defines structures that others do without

    file = directory / "image"
    file.touch()
    os.truncate(file, 1 << 20)
    with loop_device.attached(file):
        pass


@_probe
def ext4_on_loop(directory: Path) -> None:
    """Have the kernel look for ext4 on a loop device there, where there is none.

    It says EINVAL then, and something else where devices, ext4 or the right to mount are missing.
    That takes a millisecond, making a filesystem to mount would take thirty.
    """
    from lamina.linux import loop as loop_device

    file, point = directory / "image", directory / "at"
    file.touch()
    os.truncate(file, 1 << 20)
    point.mkdir()
    try:
        with loop_device.attached(file, read_only=True) as device:
            api.mount(device.path, point, "ext4", api.MS_RDONLY | api.MS_SILENT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


@_probe
def fuse(directory: Path) -> None:
    """Mount a FUSE filesystem there, and abort it before it is served."""
    point = directory / "at"
    point.mkdir()
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        data = f"fd={device},rootmode=40000,user_id=0,group_id=0"
        api.mount("lamina-probe", point, "fuse", api.MS_NOSUID | api.MS_NODEV, data)
    finally:
        os.close(device)
    api.umount2(point, api.MNT_DETACH)


@_probe
def erofs(directory: Path) -> None:
    """Mount an EROFS image there, through a loop device where the kernel wants one, and list it."""
    _try_erofs(directory, _mount_erofs)


@_probe
def erofs_files(directory: Path) -> None:
    """Mount an EROFS image there as a file, and list it."""
    _try_erofs(directory, _mount_erofs_file)


def _try_erofs(directory: Path, mount: Callable[[Path, Path], None]) -> None:
    image, point = directory / "image", directory / "at"
    point.mkdir()
    with image.open("xb") as out:
        for offset, data in EROFS_IMAGE:
            out.seek(offset)
            out.write(bytes.fromhex(data))
        out.truncate(EROFS_SIZE)
    mount(image, point)
    with _unmounted(point):
        if [path.name for path in point.iterdir()] != [EROFS_NAME]:
            raise OSError(errno.EIO, "the mount shows something else than is in the image")


def _mount_erofs(image: Path, point: Path) -> None:
    try:
        _mount_erofs_file(image, point)
    except OSError as error:
        if error.errno != errno.ENOTBLK:  # what kernels say that mount block devices only
            raise
        from lamina.linux import loop as loop_device  # newer ones do without

        with loop_device.attached(image, read_only=True) as device:
            api.mount(device.path, point, "erofs", api.MS_RDONLY, "")


def _mount_erofs_file(image: Path, point: Path) -> None:
    api.mount(str(image), point, "erofs", api.MS_RDONLY, "")


@_probe
def reflink(directory: Path) -> None:
    """Let two files there share their blocks."""
    (directory / "source").write_bytes(bytes(4096))
    source, copy = (directory / "source").open("rb"), (directory / "copy").open("wb")
    with source, copy:
        clone_file(source.fileno(), copy.fileno())


def _overlay(directory: Path, options: str) -> None:
    for name in ("lower", "upper", "work", "at"):
        (directory / name).mkdir(exist_ok=True)
    base = escape_option(directory)
    data = ",".join(f"{name}dir={base}/{name}" for name in ("lower", "upper", "work"))
    point = directory / "at"
    try:
        # Unmounting any other one writes out the whole filesystem that has the upper directory.
        api.mount("overlay", point, "overlay", 0, f"{data}{options},volatile")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        api.mount("overlay", point, "overlay", 0, data + options)  # before Linux 5.10
    with _unmounted(point):
        pass


@contextmanager
def _unmounted(point: Path) -> Iterator[None]:
    """Detach at the end of the body; nobody else knows of the mount, so it goes at once."""
    try:
        yield
    finally:
        api.umount2(point, api.MNT_DETACH)

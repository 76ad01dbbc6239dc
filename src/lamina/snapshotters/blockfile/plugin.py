"""The blockfile snapshotter's configuration, with containerd's keys and defaults, and one more."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.core.units import parse_size
from lamina.errors import InvalidArgument, SnapshotterSkipped
from lamina.snapshotters.plugin import Need, SnapshotterConfig, SnapshotterPlugin

if TYPE_CHECKING:
    from lamina.core.driver import Driver
    from lamina.snapshotters.blockfile.scratch import Scratch

_ONE_PER_UUID = ("bcachefs", "btrfs", "zfs")
_OWN_OPTIONS = ("ro", "rw", "bind", "rbind", "remount")
_SMALLEST = 1 << 20
_PROBE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockfileConfig(SnapshotterConfig):
    """`[plugins."io.containerd.snapshotter.v1.blockfile"]`.

    Attributes:
        scratch_file: the file with an empty filesystem to start from; "" for one that Lamina makes.
        fs_type: the filesystem in it.
        mount_options: options of every mount; `loop` is added where it is missing.
        recreate_scratch: copy `scratch_file` anew once it has changed.
        scratch_size: of the filesystem that Lamina makes, with a unit (Lamina's own key).
    """

    scratch_file: str = ""
    fs_type: str = "ext4"
    mount_options: tuple[str, ...] = ("loop",)
    recreate_scratch: bool = False
    scratch_size: str = "10GiB"

    def problems(self) -> list[str]:
        """Return what no snapshot could be mounted with."""
        found = [
            f"mount_options: {option!r} is what the snapshotter sets itself"
            for option in self.mount_options
            if option in _OWN_OPTIONS
        ]
        if self.fs_type in _ONE_PER_UUID:
            found.append(f"fs_type: copies of a {self.fs_type} cannot be mounted at the same time")
        if self.recreate_scratch and not self.scratch_file:
            found.append("recreate_scratch: needs scratch_file")
        try:
            if self.size() < _SMALLEST:
                found.append(f"scratch_size: {self.scratch_size} is less than 1 MiB")
        except InvalidArgument as error:
            found.append(f"scratch_size: {error}")
        return found

    def size(self) -> int:
        """Return `scratch_size` in bytes, whole blocks.

        Raises:
            InvalidArgument: it is no size.
        """
        return parse_size(self.scratch_size) // 4096 * 4096


def _load(config: BlockfileConfig, root: Path) -> Driver:
    from lamina.snapshotters.blockfile.driver import BlockfileDriver

    root.mkdir(0o700, parents=True, exist_ok=True)
    scratch = _scratch(config, root)
    scratch.check()
    options = config.mount_options
    if "loop" not in options:
        options = (*options, "loop")
    return BlockfileDriver(root, scratch, fs_type=config.fs_type, mount_options=options)


def _check(config: BlockfileConfig, directory: Path) -> None:
    _scratch(config, directory).check()


def _scratch(config: BlockfileConfig, root: Path) -> Scratch:
    from lamina.snapshotters.blockfile.scratch import Scratch

    return Scratch(
        root,
        fs_type=config.fs_type,
        size=config.size(),
        source=Path(config.scratch_file) if config.scratch_file else None,
        follow=config.recreate_scratch,
    )


def _probe(config: BlockfileConfig, directory: Path) -> None:
    """Have the kernel look for the filesystem on a loop device there, where there is none.

    It says EINVAL then, and something else where devices, the filesystem or the right to mount are
    missing. That takes a millisecond, making a filesystem to mount would take thirty.
    """
    from lamina.linux import loop, mountapi

    image, point = directory / "image", directory / "at"
    image.touch()
    with image.open("r+b") as opened:
        opened.truncate(_PROBE_BYTES)
    point.mkdir(exist_ok=True)
    flags = mountapi.MS_RDONLY | mountapi.MS_SILENT
    try:
        with loop.attached(image, read_only=True) as device:
            mountapi.mount(device.path, point, config.fs_type, flags)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return
        raise SnapshotterSkipped(
            "blockfile",
            reason=f"mounting {config.fs_type} through a loop device fails: {error.strerror}",
            fix="run as root, with /dev/loop-control and a kernel that has the filesystem",
        ) from error


def _loop(directory: Path) -> str | None:
    from lamina.linux import probes

    return probes.loop(directory)


def _reflink(directory: Path) -> str | None:
    from lamina.linux import probes

    return probes.reflink(directory)


def _mkfs(directory: Path) -> str | None:
    from lamina.tools.lookup import installed

    return None if installed("mkfs.ext4") else "it is not installed"


NEEDS = (
    Need(
        what="loop devices",
        tried="bind a file to a loop device",
        probe=_loop,
        fix="modprobe loop, and run as root, with /dev/loop-control",
    ),
    Need(
        what="shared blocks",
        tried="let two files share their blocks (FICLONE)",
        probe=_reflink,
        fix="put the root on btrfs, or on xfs made with `mkfs.xfs -m reflink=1`",
        without="every snapshot is a whole copy of its parent",
    ),
    Need(
        what="mkfs.ext4",
        tried="look for it in PATH",
        probe=_mkfs,
        fix="apt-get install e2fsprogs",
        without='the keys scratch_file, or fs_type = "xfs", are needed',
    ),
)

PLUGIN = SnapshotterPlugin(
    id="blockfile",
    config=BlockfileConfig,
    load=_load,
    probe=_probe,
    check=_check,
    needs=NEEDS,
    rank=20,
    merit="a snapshot is a file with a filesystem of fixed size; cheap where blocks can be shared",
)

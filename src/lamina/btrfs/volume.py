"""The filesystem itself: a sparse file, a btrfs in it, a loop device, a mount.

The loop device goes by itself when the last mount goes, which is all that holds it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lamina.btrfs.record import Quota, Record
from lamina.core.mount import Mount
from lamina.core.units import format_size
from lamina.errors import AlreadyExists, DataLoss, FailedPrecondition, InvalidArgument
from lamina.linux import mountapi
from lamina.linux.btrfs_quota import QuotaMode, enable_quota, quota_mode
from lamina.linux.loop import backing_file, shared
from lamina.linux.mountinfo import MountInfo, read_mountinfo
from lamina.mount import mount_all, unmount
from lamina.mount.failure import failure
from lamina.mount.unmounting import innermost_first
from lamina.provision.record import sync_directory
from lamina.provision.sparse import (
    attached_directly,
    make_sparse,
    require_place_for,
    warn_of_small_disk,
)
from lamina.provision.steps import Say
from lamina.tools.mkfs import make_btrfs

log = logging.getLogger(__name__)


TYPE = "btrfs"
LABEL = "lamina"
OPTIONS = ("discard=async",)
"""What is removed goes back to the disk below; kernels before 6.2 do not do that by themselves."""
SMALLEST = 114294784
"""mkfs.btrfs takes no smaller file, for metadata that is there twice, as it is by default."""
_MODE = 0o700
_NO_SIMPLE = frozenset({errno.EINVAL, errno.ENOTTY, errno.EOPNOTSUPP})
_SHOWN = 3
_QUOTAS: dict[QuotaMode, Quota] = {
    QuotaMode.OFF: "none",
    QuotaMode.SIMPLE: "simple",
    QuotaMode.FULL: "full",
}


class Volume:
    """A btrfs in a file; `make` and `remove` go on where a killed process was."""

    def __init__(self, record: Record, say: Say) -> None:
        self._record = record
        self._say = say
        self.file = Path(record.file)
        self.nascent = self.file.with_name(f"{self.file.name}.new")
        self.place = Path(record.place)

    def check(self) -> None:
        """Make sure that it is of use, and that nothing of somebody else's is in the way.

        Raises:
            AlreadyExists: the place is on a btrfs already, or the file is there.
            FailedPrecondition: the place is not empty.
            InvalidArgument: it would be too small, or too large for the disk's filesystem; the file
                would be in the place, or below another file.
        """
        if self._record.size < SMALLEST:
            hint = f"mkfs.btrfs wants {format_size(SMALLEST)} at least, which is {SMALLEST} bytes"
            raise InvalidArgument("make a btrfs of", format_size(self._record.size), hint=hint)
        if mount_of(self.place).type == TYPE:
            hint = "it is on one already: nothing is needed"
            raise AlreadyExists("set up a btrfs for", self.place, hint=hint)
        self._require_empty()
        if self.file.is_relative_to(self.place):
            hint = "the btrfs is mounted there and would hide its own file: choose another --dir"
            raise InvalidArgument("make file", self.file, hint=hint)
        require_place_for(self.file, self._record.size)
        for file in (self.file, self.nascent):
            if file.exists():
                hint = "choose another directory with --dir, or remove it if it is of no use"
                raise AlreadyExists("make file", file, hint=hint)

    def make(self) -> None:
        """Make what is not there yet, and mount it.

        The file has its name only when all is in it, so that one which has it is never made anew.
        """
        self.file.parent.mkdir(mode=_MODE, parents=True, exist_ok=True)
        if not self.file.exists():
            size = self._record.size
            self._say(f"make {self.file}, sparse, of {format_size(size)}, with a btrfs in it")
            self.nascent.unlink(missing_ok=True)
            make_sparse(self.nascent, size)
            warn_of_small_disk(self.file.parent, size, what="filesystem")
            make_btrfs(self.nascent, label=LABEL)
            self._prepare()
            self.nascent.replace(self.file)
        sync_directory(self.file.parent)
        self.activate()

    def activate(self) -> bool:
        """Mount it; return whether it was not mounted.

        Raises:
            DataLoss: the file is missing.
            FailedPrecondition: the place is not empty, or the kernel does not mount it.
        """
        if self.mounted() is not None:
            return False
        if not self.file.exists():
            hint = "is its disk mounted? If it is lost: `lamina btrfs teardown --force`"
            raise DataLoss("find the file of the btrfs", self.file, hint=hint)
        self._require_empty()
        self.place.mkdir(mode=_MODE, parents=True, exist_ok=True)
        self._say(f"mount {self.file} at {self.place}")
        with attached_directly(self.file) as device:
            mount_all([Mount(TYPE, device.path, options=OPTIONS)], self.place)
        return True

    def deactivate(self, *, force: bool = False) -> bool:
        """Unmount it; return whether it was mounted.

        Args:
            force: also take off what is mounted from it or in it; what has it open, and does not
                let go soon, keeps it.

        Raises:
            FailedPrecondition: it is in use.
        """
        if self.mounted() is None:
            return False
        users = self.users()
        if users and not force:
            hint = "stop the containers there, or unmount them"
            text = f"unmount {self.place}, of which more is mounted: {named(users)}"
            raise FailedPrecondition(text, hint=hint)
        for info in innermost_first(users):
            log.warning("unmount %s", info.point)
            unmount(info.point, flags=mountapi.MNT_DETACH)
        self._say(f"unmount {self.place}")
        try:
            unmount(self.place)
        except FailedPrecondition as error:
            if not force:
                raise
            log.warning("%s; it goes when that ends", error)
            unmount(self.place, flags=mountapi.MNT_DETACH)
        return True

    def remove(self) -> None:
        """Remove whatever of it is there; what is in it is lost."""
        self.deactivate(force=True)
        for file in (self.file, self.nascent):
            if file.exists():
                self._say(f"remove {file}")
                file.unlink(missing_ok=True)
        if self.file.parent.is_dir():
            sync_directory(self.file.parent)
        with contextlib.suppress(OSError):  # it was never made, or somebody has put something there
            self.place.rmdir()

    def mounted(self) -> MountInfo | None:
        """Return its mount at the place; None where that is not mounted, or is covered."""
        found = [info for info in read_mountinfo() if info.point == str(self.place)]
        return found[-1] if found and self._is_source(found[-1]) else None

    def users(self) -> list[MountInfo]:
        """Return what else is mounted from it, anywhere, and whatever is mounted in it."""
        own = self.mounted()
        if own is None:
            return []
        return [
            info
            for info in read_mountinfo()
            if info.id != own.id
            and (info.device == own.device or Path(info.point).is_relative_to(self.place))
        ]

    def _is_source(self, info: MountInfo) -> bool:
        if info.type != TYPE:
            return False
        try:
            with shared(self.file) as device:
                return device is not None and device.path == info.source
        except FileNotFoundError:
            return (backing_file(info.source) or "").startswith(str(self.file))

    def _require_empty(self) -> None:
        """Keep what is in the place from being hidden."""
        entries = sorted(path.name for path in self.place.iterdir()) if self.place.exists() else []
        if entries:
            more = " and more" if len(entries) > _SHOWN else ""
            text = f"mount a btrfs at {self.place}, which has {', '.join(entries[:_SHOWN])}{more}"
            hint = "it would be hidden: move it away, or name another directory with root_path"
            raise FailedPrecondition(text, hint=hint)

    def _prepare(self) -> None:
        """Do what needs a mount, in one that nobody sees and no kill leaves behind."""
        with attached_directly(self.nascent) as device, _unseen(device.path) as root:
            os.fchmod(root, _MODE)
            self._enable_quota(root)
            os.fsync(root)

    def _enable_quota(self, root: int) -> None:
        asked = self._record.quota
        if asked == "none":
            return
        try:
            enable_quota(root, simple=asked != "full")
        except OSError as error:
            if error.errno not in _NO_SIMPLE or asked == "full":
                raise failure(error, f"switch quotas of {self.file} on") from error
            if asked:
                hint = "Linux 6.7 or newer is needed; or --quota full"
                raise FailedPrecondition("switch simple quotas on", hint=hint) from error
            self._say(
                "quotas are off: this kernel has no simple ones (Linux 6.7);"
                " --quota full has them, which makes removals slow"
            )


def quota_of(directory: Path) -> Quota:
    """Return the quotas of the btrfs on which a directory is, as they are asked for."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        mode = quota_mode(fd)
    finally:
        os.close(fd)
    return _QUOTAS[mode]


def mount_of(path: Path) -> MountInfo:
    """Return the mount on which a path is, or would be; it is absolute and without symlinks."""
    around = [info for info in read_mountinfo() if path.is_relative_to(info.point)]
    return max(reversed(around), key=lambda info: len(Path(info.point).parts))


def named(mounts: list[MountInfo]) -> str:
    """Name the first mount points."""
    points = [info.point for info in mounts]
    more = f" and {len(points) - _SHOWN} more" if len(points) > _SHOWN else ""
    return f"{', '.join(points[:_SHOWN])}{more}"


@contextmanager
def _unseen(device: str) -> Iterator[int]:
    """Mount a btrfs nowhere, and open its root directory."""
    try:
        mount = _mount_nowhere(device)
    except OSError as error:
        raise failure(error, f"mount btrfs {device}") from error
    try:
        root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    finally:
        os.close(mount)
    try:
        yield root
    finally:
        os.close(root)


def _mount_nowhere(device: str) -> int:
    fs = mountapi.fsopen(TYPE)
    try:
        mountapi.fsconfig_string(fs, "source", device)
        mountapi.fsconfig_create(fs)
        return mountapi.fsmount(fs)
    finally:
        os.close(fs)

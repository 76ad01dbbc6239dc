"""Storage of the btrfs snapshotter, in containerd's layout and with its mounts.

    ROOT/active/ID      the subvolume of an Active snapshot
    ROOT/view/ID        of a View: a read-only snapshot of the parent's
    ROOT/snapshots/ID   of a Committed one: a read-only snapshot of active/ID

Committing makes a snapshot, because a subvolume that is made read-only is still written to by
whatever has a file open there. What was active/ID stays beside it, read-only, until something
stands on the snapshot: should a crash or a full disk undo the commit, it is what is Active again.
It shares all its blocks, so it costs a few KiB.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.core.cancel import shielded
from lamina.core.driver import Ability, Snapshot
from lamina.core.mount import Mount
from lamina.core.snapshot import EMPTY_LABELS, Kind, Usage
from lamina.errors import DataLoss, FailedPrecondition
from lamina.linux import btrfs
from lamina.linux.btrfs_quota import QuotaMode, quota_mode, remove_stale_groups
from lamina.linux.btrfs_tree import written_since
from lamina.linux.directory import entry_names
from lamina.linux.sync import syncfs
from lamina.snapshotters.btrfs.limit import require_quotas, set_limit
from lamina.snapshotters.btrfs.reconcile import faults
from lamina.snapshotters.btrfs.subvolumes import destroy_all
from lamina.snapshotters.sizes import asked_size

if TYPE_CHECKING:
    from lamina.core.problem import Problem

ACTIVE, VIEW, COMMITTED = "active", "view", "snapshots"
_STORED = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class BtrfsDriver:
    """The btrfs driver.

    Args:
        root: the snapshotter's directory, which exists, on btrfs.
        device: that its filesystem is mounted from.
    """

    abilities: frozenset[Ability] = frozenset()
    forks_atomically = True

    def __init__(self, root: Path, device: str) -> None:
        self.root = root.absolute()
        self._device = device
        self._fds: dict[str, int] = {}
        self._measured: dict[int, tuple[int, Usage]] = {}
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            for place in (ACTIVE, VIEW, COMMITTED):
                path = self.root / place
                path.mkdir(0o700, exist_ok=True)
                self._fds[place] = os.open(path, _DIRECTORY)
            undo.pop_all()

    def create(self, snapshot: Snapshot) -> None:
        """Make an empty subvolume, or a snapshot of the parent's; a View's is read-only.

        Raises:
            FailedPrecondition: a label bounds its size, and there are no quotas.
            DataLoss: the parent's subvolume is gone.
        """
        is_view = snapshot.kind == Kind.VIEW
        place = VIEW if is_view else ACTIVE
        limit = 0 if is_view else asked_size(snapshot)
        if limit:
            require_quotas(self._fds[ACTIVE], self.root)
        if not snapshot.parents:
            btrfs.create_subvolume(self._fds[place], str(snapshot.id))
            os.chmod(str(snapshot.id), 0o755, dir_fd=self._fds[place])
        else:
            with self._opened(COMMITTED, snapshot.parents[0]) as parent:
                btrfs.create_snapshot(self._fds[place], str(snapshot.id), parent, read_only=is_view)
            self._settle(snapshot.parents[0])
        if limit:
            self._limit(snapshot, limit)

    def fork(self, source: Snapshot, target: Snapshot) -> None:
        """Make a snapshot of the source's subvolume, mounted or not, as it is at one moment."""
        limit = asked_size(target)
        if limit:
            require_quotas(self._fds[ACTIVE], self.root)
        with self._opened(ACTIVE, source.id) as fd:
            btrfs.create_snapshot(self._fds[ACTIVE], str(target.id), fd)
        if limit:
            self._limit(target, limit)

    def mounts(self, snapshot: Snapshot) -> list[Mount]:
        """Return one mount of the subvolume by its id.

        That of an Active snapshot is writable again if a commit that came to nothing has left it
        read-only.
        """
        if snapshot.kind == Kind.VIEW:
            with self._opened(VIEW, snapshot.id) as fd:
                options: tuple[str, ...] = (f"subvolid={btrfs.subvolume_id(fd)}", "ro")
        else:
            with self._opened(ACTIVE, snapshot.id) as fd:
                btrfs.set_read_only(fd, False)
                options = (f"subvolid={btrfs.subvolume_id(fd)}",)
        return [Mount("btrfs", self._device, options=options)]

    def seal(self, snapshot: Snapshot) -> Usage:
        """Make the read-only snapshot that is the parent of others from now on, and measure it."""
        self._destroy(COMMITTED, snapshot.id)  # of a commit that came to nothing
        with self._opened(ACTIVE, snapshot.id) as fd:
            btrfs.set_read_only(fd, True)
            try:
                btrfs.create_snapshot(self._fds[COMMITTED], str(snapshot.id), fd, read_only=True)
                return self._measure(fd, snapshot)
            except BaseException:
                btrfs.set_read_only(fd, False)
                raise

    def usage(self, snapshot: Snapshot) -> Usage:
        """Measure what has reached the disk, if that has changed since it was measured last."""
        if snapshot.kind == Kind.VIEW:
            return Usage(0, 0)
        with self._opened(ACTIVE, snapshot.id) as fd:
            running = btrfs.generation(fd)
            changed = btrfs.subvolume_info(fd).generation
            before = self._measured.get(snapshot.id)
            if before and before[0] == changed:
                return before[1]
            usage = self._measure(fd, snapshot)
            if changed < running:  # else it may change without another number
                self._measured[snapshot.id] = (changed, usage)
        return usage

    def destroy(self, id: int) -> None:
        """Delete the subvolumes, and those that were made in them; mounts of them are empty then.

        Raises:
            FailedPrecondition, OSError: see `destroy_all`.
        """
        self._measured.pop(id, None)
        for place in (ACTIVE, VIEW, COMMITTED):
            self._destroy(place, id)

    def ids(self) -> list[int]:
        """List the ids that have a subvolume of any kind."""
        return sorted({id for place in self._fds for id in self._ids(place)})

    def sync(self) -> None:
        """Sync the filesystem, which tells of failed writes, and clear away empty quota groups.

        What is sealed has been written since `seal` returned.
        """
        fd = self._fds[COMMITTED]
        syncfs(fd)
        # A failure of what follows says nothing of the snapshots.
        with shielded(), contextlib.suppress(OSError):
            if quota_mode(fd) != QuotaMode.OFF:
                remove_stale_groups(fd)

    def info_labels(self, id: int) -> Mapping[str, str]:
        """Return none."""
        return EMPTY_LABELS

    def faults(self, exists: Callable[[int], bool]) -> Iterator[Problem]:
        """Yield what is wrong with the subvolumes; see `Inspectable`."""
        for place, fd in self._fds.items():
            yield from faults(fd, self._ids(place), is_committed=place == COMMITTED)

    def close(self) -> None:
        """Close the descriptors; calling it again does nothing."""
        while self._fds:
            os.close(self._fds.popitem()[1])

    def _destroy(self, place: str, id: int) -> None:
        # Through the descriptor: by now the path may lead to a root that was made anew.
        destroy_all(self._fds[place], self.root / place / str(id))

    def _settle(self, id: int) -> None:
        """Delete what a Committed snapshot was made from; with that it goes at the latest."""
        with contextlib.suppress(OSError, FailedPrecondition):
            self._destroy(ACTIVE, id)

    def _limit(self, snapshot: Snapshot, size: int) -> None:
        fd = self._fds[ACTIVE]
        mode = require_quotas(fd, self.root)
        parent = None
        if snapshot.parents:
            with self._opened(COMMITTED, snapshot.parents[0]) as opened:
                parent = btrfs.subvolume_id(opened)
        with self._opened(ACTIVE, snapshot.id) as opened:
            own = btrfs.subvolume_id(opened)
        set_limit(fd, own, size, mode=mode, parent=parent)

    def _measure(self, fd: int, snapshot: Snapshot) -> Usage:
        """Count what is newer than the parent's snapshot, to which nothing was added since."""
        began = 0
        if snapshot.parents:
            with self._opened(COMMITTED, snapshot.parents[0]) as parent:
                began = btrfs.subvolume_info(parent).created
        written = written_since(fd, began)
        return Usage(written.inodes, written.size)

    def _ids(self, place: str) -> list[int]:
        return [int(name) for name in entry_names(self._fds[place]) if _STORED.fullmatch(name)]

    @contextmanager
    def _opened(self, place: str, id: int) -> Iterator[int]:
        try:
            fd = os.open(str(id), _DIRECTORY, dir_fd=self._fds[place])
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTDIR}:
                raise
            hint = "it is gone: remove its snapshot, and pull it again"
            raise DataLoss("use subvolume", self.root / place / str(id), hint=hint) from error
        try:
            yield fd
        finally:
            os.close(fd)

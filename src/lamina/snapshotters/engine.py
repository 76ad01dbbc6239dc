"""The one snapshotter: containerd's semantics on top of any driver.

Every change of storage is bracketed by two transactions of the store, and no driver works inside
one: slow work on one snapshot delays no other, and after a kill at any instruction the store tells
what to undo. See `docs/internals/store.md`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.core.cancel import shielded
from lamina.core.driver import Ability, Driver, Prompt, Snapshot
from lamina.core.mount import Mount
from lamina.core.snapshot import Info, Kind, Snapshotter, Usage
from lamina.errors import DataLoss, Internal, LaminaError, PermissionDenied, ResourceExhausted
from lamina.meta.boot import boot_id
from lamina.meta.owners import Owners
from lamina.meta.snapshot_rows import Record
from lamina.meta.snapshots import SnapshotStore
from lamina.snapshotters.reaper import Reaper

if TYPE_CHECKING:
    from lamina.core.problem import Problem
    from lamina.meta.totals import Totals
    from lamina.snapshotters.fsck import OriginOf

log = logging.getLogger(__name__)

DATABASE = "snapshots.sqlite"
OWNERS = "owners"


class Engine(Snapshotter):
    """A snapshotter with its driver; for several threads, and several processes on one root.

    Args:
        name: the snapshotter's id, for messages.
        driver: keeps the storage; closed with the engine.
        root: the snapshotter's own directory, which exists; it gets the store.
        sync_remove: `remove` frees the storage before it returns.
        wake: called after whatever leaves work for the background: `reap` and `sync`.
        boot: id of the running boot, if not the kernel's.
    """

    def __init__(
        self,
        name: str,
        driver: Driver,
        root: Path,
        *,
        sync_remove: bool = False,
        wake: Callable[[], None] | None = None,
        boot: str = "",
    ) -> None:
        self.name = name
        self.root = root
        self._driver = driver
        self._sync_remove = sync_remove
        self._wake = wake or _nothing
        self.mounts_at_once = isinstance(driver, Prompt) and driver.mounts_at_once
        self._closed = False
        self._undos: deque[Callable[[], object]] = deque()
        with contextlib.ExitStack() as undo:
            undo.callback(driver.close)
            self._owners = Owners(root / OWNERS)
            undo.callback(self._owners.close)
            self._store = SnapshotStore(
                root / DATABASE, boot=boot or boot_id(), owners=self._owners
            )
            undo.callback(self._store.close)
            self._reaper = Reaper(driver, self._store.trash)
            self._recover()
            undo.pop_all()

    @property
    def abilities(self) -> frozenset[Ability]:
        """What the driver can do here."""
        return self._driver.abilities

    # Looking

    def stat(self, key: str) -> Info:
        """Describe the snapshot, with the labels that the driver shows."""
        return self._shown(self._store.record(key))

    def usage(self, key: str) -> Usage:
        """Measure an Active snapshot now; nothing for a View; else what was measured at commit."""
        record = self._store.record(key)
        if record.info.kind != Kind.ACTIVE:
            return record.usage
        with _translated("measure snapshot", key):
            return self._measure(key)

    def mounts(self, key: str) -> list[Mount]:
        """Return the mounts of an Active snapshot or a View."""
        with _translated("mount snapshot", key):
            return self._driver.mounts(self._store.snapshot(key))

    def walk(self, filters: Sequence[str] = ()) -> Iterator[Info]:
        """Yield what a filter matches; the driver's own labels are shown, but not filtered by."""
        from lamina.snapshotters.listing import matcher  # to run a container, none are listed

        return map(self._shown, self._store.walk(matcher(filters)))

    def totals(self) -> Totals:
        """Add up what the store has recorded; some milliseconds for ten thousand snapshots."""
        return self._store.totals()

    # Changing

    def update(self, info: Info, *fieldpaths: str) -> Info:
        """Change labels; those that the driver shows are never stored."""
        shown = self._driver.info_labels(self._store.record(info.name).id)
        kept = {key: value for key, value in info.labels.items() if key not in shown}
        return self._shown(self._store.update(info._replace(labels=kept), fieldpaths))

    def prepare(
        self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        """Make an Active snapshot; see `Snapshotter.prepare`."""
        return self._create(Kind.ACTIVE, key, parent, labels)

    def view(
        self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        """Make a View; see `Snapshotter.view`."""
        return self._create(Kind.VIEW, key, parent, labels)

    def commit(
        self, name: str, key: str, *, labels: Mapping[str, str] | None = None, parent: str = ""
    ) -> None:
        """Commit an Active snapshot; see `Snapshotter.commit`."""
        self._undo_late()
        can_rebase = Ability.REBASE in self.abilities
        snapshot = self._store.begin_commit(name, key, parent, can_rebase=can_rebase)
        try:
            with _translated("commit snapshot", key):
                usage = self._driver.seal(snapshot)
            self._store.finish_commit(snapshot.id, usage, labels)
        except BaseException:
            self._undo("commit", key, lambda: self._store.abort_commit(snapshot.id))
            raise
        self._wake()

    def remove(self, key: str) -> None:
        """Remove the snapshot: one transaction, and with `sync_remove` its storage as well."""
        self.release([self.discard(key)])

    def discard(self, key: str) -> int:
        """Remove the snapshot in one transaction, and return its storage's id for `release`.

        For those who hold others up until they have removed a number of snapshots. Storage that is
        never released goes with the work for the background.
        """
        self._undo_late()
        id, _ = self._store.remove(key)
        return id

    def release(self, ids: Iterable[int]) -> None:
        """Free what `discard` has left, now with `sync_remove` and in the background else."""
        if self._sync_remove:
            for id in ids:
                self._reaper.free(id)  # a failure is logged: the snapshot is removed in any case
        if not self._sync_remove or self.pending():
            self._wake()

    # Background work

    def pending(self) -> bool:
        """Tell whether `reap` or `sync` has something to do."""
        return bool(self._store.backlog())

    def backlog(self) -> frozenset[tuple[str, int]]:
        """Return what there is to do: `("free", id)` for `reap`, `("sync", id)` for `sync`."""
        return self._store.backlog()

    def reap(self, *, stop: Callable[[], bool] = lambda: False, rest: float = 0) -> int:
        """Free the storage of removed snapshots; return how many were freed.

        Storage that cannot be freed (something is mounted there) is logged and stays for next time.
        Several processes may do this at once; they share the work.

        Args:
            stop: asked before each snapshot; true ends the work early.
            rest: seconds of pause for each second of work.
        """
        return self._reaper.reap(stop=stop, rest=rest)

    def sync(self) -> None:
        """Make every commit so far survive power loss: one sync for all of them.

        Raises:
            DataLoss: an earlier sync failed for a commit that is still there.
            LaminaError: this one fails.
        """
        ids = self._store.unsynced()
        if ids:
            self._sync(ids)
        failed = self._store.failed()
        if failed:
            raise DataLoss(
                f"sync {len(failed)} snapshots that the disk has failed to write, such as",
                failed[0],
                hint="see dmesg; remove their images, and pull them again",
            )

    def cleanup(self) -> None:
        """Free all storage that no snapshot has a right to, and return when it is gone.

        Raises:
            LaminaError: some of it cannot be freed; the rest is.
        """
        self._undo_late()
        self._store.recover()
        with _translated("clean up snapshotter", self.name):
            self._store.trash.adopt_orphans(self._driver.ids())
            self._reaper.drain()
        self._owners.sweep()

    def fsck(self, origin: OriginOf | None = None) -> list[Problem]:
        """Compare the store with the disk, and return what is wrong; changes nothing.

        What other processes are doing meanwhile is no problem, nor is work for the background.

        Args:
            origin: tells where a layer can be had from again, so that its repair restores it.
        """
        from lamina.snapshotters.fsck import check, unknown  # hardly ever called

        with _translated("check snapshotter", self.name):
            return check(self._store, self._driver, self._reaper, origin or unknown)

    def close(self) -> None:
        """Close the store, stop being an owner, and close the driver."""
        if self._closed:
            return
        self._closed = True
        self._store.close()
        self._owners.close()
        self._driver.close()

    # Helpers

    def _sync(self, ids: Sequence[int]) -> None:
        try:
            with _translated("sync snapshotter", self.name):
                self._driver.sync()
        except LaminaError:
            self._store.mark_failed(ids)
            raise
        self._store.mark_synced(ids)

    def _create(
        self, kind: Kind, key: str, parent: str, labels: Mapping[str, str] | None
    ) -> list[Mount]:
        self._undo_late()
        snapshot = self._store.begin_create(kind, key, parent, labels)
        try:
            with _translated(f"create {str(kind).lower()} snapshot", key):
                self._driver.create(snapshot)
                mounts = self._driver.mounts(snapshot)
            self._store.finish_create(snapshot.id)
        except BaseException:
            self._undo("create", key, lambda: self._abandon(snapshot))
            raise
        return mounts

    def _abandon(self, snapshot: Snapshot) -> None:
        if self._store.abandon(snapshot.id):
            self._reaper.destroy([snapshot.id])

    def _undo(self, what: str, key: str, undo: Callable[[], object]) -> None:
        """Undo a change that failed; what cannot be undone now (a full disk) is tried again."""
        try:
            with shielded():
                undo()
        except Exception as error:  # the first failure is the one to report
            log.warning("cannot undo %s of a snapshot: %s", what, error, extra={"key": key})
            self._undos.append(undo)

    def _undo_late(self) -> None:
        """Undo what could not be undone before; after this process's end, others would."""
        while self._undos:
            undo = self._undos.popleft()
            try:
                with shielded():
                    undo()
            except Exception:
                self._undos.append(undo)
                raise

    def _measure(self, key: str) -> Usage:
        try:
            return self._driver.usage(self._store.snapshot(key))
        except Exception:
            self._store.record(key)  # or NotFound: removed while it was measured
            raise

    def _shown(self, record: Record) -> Info:
        extra = self._driver.info_labels(record.id)
        if not extra:
            return record.info
        return record.info._replace(labels={**record.info.labels, **extra})

    def _recover(self) -> None:
        self._store.recover()
        if self._store.rebooted():
            with _translated("open snapshotter", self.name):
                lost = self._store.reboot(self._driver.ids())
            for key in lost:
                log.warning(
                    "snapshot was not on disk when the machine went down", extra={"key": key}
                )
        if self.pending():
            self._wake()


def _nothing() -> None:
    pass


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_REFUSED = frozenset({errno.EPERM, errno.EACCES, errno.EROFS})


@contextmanager
def _translated(what: str, subject: str) -> Iterator[None]:
    """Turn the OSError that a driver lets through into the error tree."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        text = f'{what} "{subject}": {error.strerror or error}{where}'
        if error.errno in _FULL:
            raise ResourceExhausted(text, hint="free space or inodes on its filesystem") from error
        if error.errno in _REFUSED:
            raise PermissionDenied(text) from error
        raise Internal(text) from error

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
from lamina.core.driver import (
    Ability,
    Driver,
    Evicting,
    Forkable,
    Imaging,
    Mounting,
    Prompt,
    Remote,
    Settling,
    Shrunk,
    Snapshot,
)
from lamina.core.labels import FORK_OF
from lamina.core.mount import Mount
from lamina.core.snapshot import Info, Kind, Snapshotter, Usage
from lamina.errors import (
    AlreadyExists,
    DataLoss,
    Internal,
    InvalidArgument,
    LaminaError,
    NotFound,
    NotImplementedHere,
    PermissionDenied,
    ResourceExhausted,
)
from lamina.meta.boot import boot_id
from lamina.meta.owners import Owners
from lamina.meta.snapshot_rows import Record
from lamina.meta.snapshots import SnapshotStore
from lamina.snapshotters.reaper import Reaper
from lamina.snapshotters.remote import claimed_labels, layer_of, wait_until_seen

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
        self.mounts_layers = isinstance(driver, Mounting) and driver.mounts_layers
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
            if isinstance(driver, Evicting):
                driver.is_used = self._store.is_used
            self._reaper = Reaper(driver, self._store.trash)
            self._recover()
            undo.pop_all()

    @property
    def abilities(self) -> frozenset[Ability]:
        """What the driver can do here."""
        return self._driver.abilities

    @property
    def is_remote(self) -> bool:
        """Whether the driver may serve a layer from the layer's registry."""
        return isinstance(self._driver, Remote)

    @property
    def driver(self) -> Driver:
        """What keeps the storage, for what only some drivers can do."""
        return self._driver

    def ids(self) -> dict[str, int]:
        """Return the number of every snapshot that has all of its storage, by key."""
        return {key: id for id, key in self._store.complete_ids().items()}

    # Looking

    def stat(self, key: str) -> Info:
        """Describe the snapshot, with the labels that the driver shows."""
        return self._shown(self._store.record(key))

    def usage(self, key: str) -> Usage:
        """Measure an Active snapshot now; nothing for a View; else what was measured at commit,
        and what it has grown by since where its driver fetches it bit by bit.
        """
        record = self._store.record(key)
        if record.info.kind == Kind.COMMITTED and isinstance(self._driver, Evicting):
            growth = self._driver.growth(record.id)
            return Usage(record.usage.inodes, record.usage.size + growth)
        if record.info.kind != Kind.ACTIVE:
            return record.usage
        with _translated("measure snapshot", key):
            return self._measure(key)

    def mounts(self, key: str) -> list[Mount]:
        """Return the mounts of an Active snapshot or a View."""
        with _translated("mount snapshot", key):
            return self._driver.mounts(self._store.snapshot(key))

    def layer_image(self, key: str) -> Path | None:
        """Return where the EROFS image of the layer that this Active snapshot is for may be put.

        None: its files have to be put where `mounts` says. See `Imaging`.
        """
        if not isinstance(self._driver, Imaging):
            return None
        with _translated("unpack to snapshot", key):
            return self._driver.layer_image(self._store.snapshot(key))

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
        """Make an Active snapshot; see `Snapshotter.prepare`.

        With the label FORK_OF it is a fork of the snapshot that this names: so a fork is asked for
        over containerd's protocol, which has no such call. `parent` is the source's then.

        Raises:
            AlreadyExists: also for the layer that the label SNAPSHOT_REF names, where it is there
                or the driver serves it from now on.
            InvalidArgument: also for both FORK_OF and SNAPSHOT_REF.
        """
        if labels and labels.get(FORK_OF):
            if layer_of(labels):
                # They come from an image, which has no right to what is in a container.
                raise InvalidArgument("prepare as a fork the layer", layer_of(labels))
            others = {name: value for name, value in labels.items() if name != FORK_OF}
            return self._fork(labels[FORK_OF], key, others, parent=parent, is_named=True)
        if isinstance(self._driver, Remote) and layer_of(labels):
            return self._prepare_layer(self._driver, key, parent, labels)
        return self._create(Kind.ACTIVE, key, parent, labels)

    def view(
        self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        """Make a View; see `Snapshotter.view`."""
        if labels and labels.get(FORK_OF):
            hint = "a fork is writable: prepare it"
            raise InvalidArgument("view a fork of snapshot", labels[FORK_OF], hint=hint)
        return self._create(Kind.VIEW, key, parent, labels)

    def fork(self, key: str, new: str, *, labels: Mapping[str, str] | None = None) -> list[Mount]:
        """Copy an Active snapshot that may be in use; see `Snapshotter.fork`."""
        return self._fork(key, new, labels)

    @property
    def forks(self) -> str:
        """How it forks: `atomic`, `live` (what is written to meanwhile may be torn), or ""."""
        if not isinstance(self._driver, Forkable):
            return ""
        return "atomic" if self._driver.forks_atomically else "live"

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

    def shrink(self, to: int | None = None) -> Shrunk:
        """Empty layers that can be had again, until the others fit; see `Evicting.shrink`.

        Raises:
            NotImplementedHere: this snapshotter has all of a layer, or nothing.
            LaminaError: a layer cannot be emptied.
        """
        if not isinstance(self._driver, Evicting):
            hint = "only stargz, nydus and overlaybd fetch layers that they can let go of"
            raise NotImplementedHere("shrink the caches of", self.name, hint=hint)
        with _translated("shrink the caches of", self.name):
            return self._driver.shrink(to)

    @property
    def evicts(self) -> bool:
        """Whether there is something to `shrink`."""
        return isinstance(self._driver, Evicting)

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

    def fsck(self, origin: OriginOf | None = None, *, deep: bool = False) -> list[Problem]:
        """Compare the store with the disk, and return what is wrong; changes nothing.

        What other processes are doing meanwhile is no problem, nor is work for the background.

        Args:
            origin: tells where a layer can be had from again, so that its repair restores it.
            deep: have the driver read all of its metadata as well.
        """
        from lamina.snapshotters.fsck import check, unknown  # hardly ever called

        with _translated("check snapshotter", self.name):
            return check(self._store, self._driver, self._reaper, origin or unknown, deep=deep)

    def close(self) -> None:
        """Close the store and the driver, then stop being an owner: without one, all is closed."""
        if self._closed:
            return
        self._closed = True
        self._store.close()
        self._driver.close()
        self._owners.close()

    # Helpers

    def _sync(self, ids: Sequence[int]) -> None:
        try:
            with _translated("sync snapshotter", self.name):
                self._driver.sync()
        except LaminaError:
            self._store.mark_failed(ids)
            raise
        if isinstance(self._driver, Settling):
            self._settle(self._driver, ids)
        self._store.mark_synced(ids)

    def _settle(self, driver: Settling, ids: Sequence[int]) -> None:
        """Free what Active snapshots have left; what fails goes with the snapshot.

        Before `mark_synced`, so that a kill has it done again. They are on disk all the same: where
        a failure kept them from being marked, the next boot would drop them.
        """
        try:
            driver.settle(ids)
        except (LaminaError, OSError) as error:
            log.warning("cannot settle snapshots: %s", error, extra={"snapshotter": self.name})

    def _create(
        self, kind: Kind, key: str, parent: str, labels: Mapping[str, str] | None
    ) -> list[Mount]:
        self._undo_late()
        snapshot = self._store.begin_create(kind, key, parent, labels)
        what = f"create {str(kind).lower()} snapshot"
        return self._made(snapshot, key, what, lambda: self._driver.create(snapshot))

    def _prepare_layer(
        self, driver: Remote, key: str, parent: str, labels: Mapping[str, str] | None
    ) -> list[Mount]:
        """Prepare an extraction snapshot, unless the driver makes it unnecessary."""
        layer = layer_of(labels)
        there = self._found(layer)
        if there is not None and there.parent == parent:
            raise AlreadyExists("prepare layer", layer)
        mounts = self._create(Kind.ACTIVE, key, parent, labels)
        if there is not None:
            # On a layer that was unpacked for another namespace of containerd, which names it so:
            # containerd looks for the layer on the parent that it has asked for.
            return mounts
        try:
            kept = claimed_labels(driver, self._store.snapshot(key))
            if kept is None:
                return mounts
            self.commit(layer, key, labels=kept)
        except BaseException as error:
            self._undo("claim", key, lambda: self.remove(key))
            if isinstance(error, AlreadyExists):
                wait_until_seen(lambda: self._found(layer) is not None)
            raise
        raise AlreadyExists("prepare layer", layer)

    def _found(self, key: str) -> Info | None:
        try:
            return self._store.record(key).info
        except NotFound:  # or lost in a power cut, and to be had anew
            return None

    def _fork(
        self,
        key: str,
        new: str,
        labels: Mapping[str, str] | None,
        *,
        parent: str | None = None,
        is_named: bool = False,
    ) -> list[Mount]:
        driver = self._driver
        if not isinstance(driver, Forkable):
            raise NotImplementedHere(
                f"fork snapshot with {self.name}", key,
                hint="this snapshotter cannot: use another, or commit it and prepare on that",
            )  # fmt: skip
        self._undo_late()
        source, target = self._store.begin_fork(key, new, labels, parent=parent, is_named=is_named)
        what = f'fork snapshot "{key}" as'
        return self._made(target, new, what, lambda: driver.fork(source, target))

    def _made(
        self, snapshot: Snapshot, key: str, what: str, make: Callable[[], object]
    ) -> list[Mount]:
        """Make the storage of what the store has as preparing, and return its mounts."""
        try:
            with _translated(what, key):
                make()
                mounts = self._driver.mounts(snapshot)
            self._store.finish_create(snapshot.id)
        except BaseException:
            self._undo("create", key, lambda: self._abandon(snapshot))
            raise
        return mounts

    def _abandon(self, snapshot: Snapshot) -> None:
        try:
            abandoned = self._store.abandon(snapshot.id)
        except ResourceExhausted:
            # What was made may be what fills the disk. Only this process has a right to it.
            self._driver.destroy(snapshot.id)
            abandoned = self._store.abandon(snapshot.id)
        if abandoned:
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

"""Storage of the zfs snapshotter: a dataset for each snapshot, under containerd's names.

    ROOT              the mount point of the dataset below which the others are; see `datasets`
    ROOT/forks/ID     names the snapshot that ID is being forked from

No program is started, nothing is listed but one level of datasets, and that hardly ever. Whatever
is made or destroyed here is on disk when ZFS says so.
"""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.core.driver import Ability, Snapshot
from lamina.core.labels import MAX_SIZE
from lamina.core.mount import Mount
from lamina.core.snapshot import EMPTY_LABELS, Kind, Usage
from lamina.core.units import format_size
from lamina.errors import AlreadyExists, DataLoss, FailedPrecondition, InvalidArgument, NotFound
from lamina.linux import zfs
from lamina.snapshotters.mappings import mapped_root, mapping_options
from lamina.snapshotters.sizes import asked_size
from lamina.snapshotters.zfs.datasets import FORK, MARK, Datasets
from lamina.snapshotters.zfs.forks import Forks

if TYPE_CHECKING:
    from lamina.core.problem import Problem

log = logging.getLogger(__name__)

MODULE_VERSION = Path("/sys/module/zfs/version")
_IDMAPPED = (2, 2)
"""The ZFS that can be mounted with id maps (Linux >= 5.12)."""


class ZfsDriver:
    """The zfs driver.

    Args:
        root: the snapshotter's directory.
        dataset: the one that is mounted there.
    """

    mounts_at_once = True
    forks_atomically = True

    def __init__(self, root: Path, dataset: str) -> None:
        self.datasets = Datasets(dataset)
        self._forks = Forks(root / "forks")
        self._can_remap = _version() >= _IDMAPPED

    @property
    def abilities(self) -> frozenset[Ability]:
        """Id maps, where ZFS can be mounted with them."""
        return frozenset({Ability.REMAP_IDS} if self._can_remap else ())

    def create(self, snapshot: Snapshot) -> None:
        """Make an empty dataset, or a clone of the parent's.

        Raises:
            DataLoss: the parent's is gone.
            InvalidArgument: a label makes no sense, or asks for less than the parent has.
        """
        mapped_root(snapshot.labels)  # refuses labels that no mount could be made with
        name = self.datasets.of(snapshot.id)
        if snapshot.parents:
            origin = self.datasets.snapshot_of(snapshot.parents[0])
            self._clone(snapshot, origin)
            return
        try:
            zfs.create(name, _properties(snapshot))
        except FileExistsError as error:
            raise _taken(name) from error

    def mounts(self, snapshot: Snapshot) -> list[Mount]:
        """Return the one mount of its dataset."""
        mapping = mapping_options(snapshot.labels) if self._can_remap else ()
        read_only = ("ro",) if snapshot.kind == Kind.VIEW else ()
        name = self.datasets.of(snapshot.id)
        return [Mount("zfs", name, options=(*mapping, *read_only))]

    def seal(self, snapshot: Snapshot) -> Usage:
        """Make the ZFS snapshot; what is still mounted goes on, apart from it.

        Raises:
            DataLoss: the dataset is gone.
        """
        try:
            self.datasets.seal(snapshot.id)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ECHRNG}:
                raise
            raise self._lost(snapshot.id) or error from error
        return self.usage(snapshot)

    def usage(self, snapshot: Snapshot) -> Usage:
        """Return what would be free without it: what is on disk, some seconds late at most.

        Raises:
            NotFound: there is no dataset.
        """
        name = self.datasets.of(snapshot.id)
        used = self.datasets.number(name, "used")
        if used is None:
            raise NotFound("measure dataset", name)
        return Usage(0, used)

    def destroy(self, id: int) -> None:
        """Destroy the dataset, or hand what forks need of it over to them first.

        Raises:
            FailedPrecondition: it is mounted somewhere, or what was made from it is.
        """
        source = self._forks.source(id)
        if source is not None:
            self._drop(self._fork_point(source, id))
        name = self.datasets.of(id)
        if self.datasets.is_there(id) and not self._try_to_destroy(name):
            self._free_snapshots(id)
            if not self._try_to_destroy(name):
                hint = "it is freed once nobody has it mounted; /proc/*/mountinfo tells who has"
                raise FailedPrecondition("destroy dataset, which is in use:", name, hint=hint)
        self._forks.forget(id)

    def ids(self) -> list[int]:
        """List the snapshots that have a dataset, and what was being forked; clones come first."""
        return sorted({*self.datasets.ids(), *self._forks.ids()}, reverse=True)

    def fork(self, source: Snapshot, target: Snapshot) -> None:
        """Make a clone of what the source has at this moment; see `Forkable`."""
        point = self._fork_point(source.id, target.id)
        self._forks.note(target.id, source.id)
        try:
            zfs.snapshot(point)
        except FileNotFoundError as error:
            raise self._lost(source.id) or error from error
        self._clone(target, point)
        self._drop(point)
        self._forks.forget(target.id)

    def faults(self, exists: Callable[[int], bool]) -> Iterator[Problem]:
        """Return what is wrong with the datasets, beyond `ids`."""
        from lamina.snapshotters.zfs.faults import faults

        return faults(self.datasets, self._forks)

    def sync(self) -> None:
        """Do nothing: ZFS has written a snapshot, and all that is in it, when it has made it."""

    def info_labels(self, id: int) -> Mapping[str, str]:
        """Return none."""
        return EMPTY_LABELS

    def close(self) -> None:
        """Keep nothing open."""

    def _clone(self, snapshot: Snapshot, origin: str) -> None:
        name = self.datasets.of(snapshot.id)
        try:
            zfs.clone(name, origin, _properties(snapshot))
        except FileExistsError as error:
            raise _taken(name) from error
        except FileNotFoundError as error:
            if zfs.exists(origin):
                raise
            hint = "`lamina fsck` tells what can be done"
            raise DataLoss("use the ZFS snapshot", origin, hint=hint) from error
        except OSError as error:
            if error.errno == errno.ENOSPC:
                self._require_fit(snapshot, origin)
            raise

    def _require_fit(self, snapshot: Snapshot, origin: str) -> None:
        """See whether there was no room because the label asks for less than is there already."""
        size = asked_size(snapshot)
        present = self.datasets.number(origin, "referenced") or 0
        if size and size < present:
            hint = f"its parent has {format_size(present)} already"
            raise InvalidArgument(f"use label {MAX_SIZE}", size, hint=hint)

    def _fork_point(self, source: int, target: int) -> str:
        return f"{self.datasets.of(source)}@{FORK}{target}"

    def _drop(self, snapshot: str) -> None:
        """Destroy a ZFS snapshot, now or with the last of its clones."""
        zfs.destroy_snapshot(snapshot, later=True)

    def _try_to_destroy(self, name: str) -> bool:
        """Return whether the dataset is gone; False while it is mounted or has snapshots."""
        try:
            zfs.destroy(name)
        except FileNotFoundError:
            return True
        except FileExistsError as error:
            hint = f"no snapshotter makes any there; zfs list -r {name}"
            what = "destroy dataset, which has others below it:"
            raise FailedPrecondition(what, name, hint=hint) from error
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True

    def _free_snapshots(self, id: int) -> None:
        """Destroy the ZFS snapshots of a dataset that has to go.

        Those that forks are clones of go over to them, with a promotion: the dataset is the clone
        then. Clones of a Committed snapshot's are its children, which are removed already, but may
        be in use still.
        """
        sealed = self.datasets.snapshot_of(id)
        for snapshot, clones in self.datasets.clones(id).items():
            self._drop(snapshot)
            if snapshot == sealed and clones:
                hint = "it is freed after those; they may be mounted: see /proc/*/mountinfo"
                names = ", ".join(clones)
                raise FailedPrecondition(
                    f"destroy dataset {self.datasets.of(id)}, which has clones:", names, hint=hint
                )
        while forks := [each[0] for each in self.datasets.clones(id).values() if each]:
            zfs.promote(forks[0])  # takes the older ones along

    def _lost(self, id: int) -> DataLoss | None:
        """Return the error that a missing dataset is; None where it is there."""
        name = self.datasets.of(id)
        if zfs.exists(name):
            return None
        return DataLoss("use the dataset", name, hint="`lamina fsck` tells what can be done")


def _properties(snapshot: Snapshot) -> dict[str, zfs.Value]:
    """Return those of a new dataset; what is not among them is as its parent has it."""
    properties: dict[str, zfs.Value] = {"mountpoint": "legacy", MARK: str(snapshot.id)}
    if snapshot.kind == Kind.VIEW:
        properties["readonly"] = 1
    elif size := asked_size(snapshot):
        properties["refquota"] = size
    return properties


def _taken(name: str) -> AlreadyExists:
    hint = "somebody else has made it: Lamina needs the dataset above it for itself"
    return AlreadyExists("make dataset", name, hint=hint)


def _version() -> tuple[int, int]:
    try:
        found = re.match(r"([0-9]+)\.([0-9]+)", MODULE_VERSION.read_text())
    except OSError:
        return (0, 0)
    return (int(found[1]), int(found[2])) if found else (0, 0)

"""The contract of a driver: storage for snapshots, and nothing else.

The engine keeps keys, parents, labels, kinds and states; a driver keeps bytes. It is told the
snapshot by number and never sees a key or the database. The engine brackets every call that
changes storage by two durable states, and after a crash calls `destroy` for whatever was half
made, so a driver needs no journal of its own: `destroy` must cope with storage in any condition.

Calls come from several threads and processes at once. For one snapshot `create`, `seal` and
`destroy` never overlap each other; `mounts` and `usage` may come while it is sealed, and `usage`
may see its storage vanish.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from lamina.core.mount import Mount
from lamina.core.snapshot import EMPTY_LABELS, Kind, Usage

if TYPE_CHECKING:
    from lamina.core.problem import Problem


class Ability(enum.StrEnum):
    """What a driver can do beyond its methods; values are containerd's capability strings."""

    REBASE = "rebase"
    """A snapshot prepared without a parent can be given one at commit."""
    REMAP_IDS = "remap-ids"
    """Mapping labels become idmapped mounts."""
    ONLY_REMAP_IDS = "only-remap-ids"
    """A user namespace needs idmapped mounts: ownership is never changed by copying."""


class Snapshot(NamedTuple):
    """What a driver is told of a snapshot.

    Attributes:
        id: number that is never reused in this root; the only thing to name storage after.
        kind: View or Active; Committed only in `seal`'s aftermath (`usage`, `mounts` of children).
        parents: ids of the chain, the immediate parent first, the base layer last.
        labels: as given to prepare or view.
    """

    id: int
    kind: Kind
    parents: tuple[int, ...] = ()
    labels: Mapping[str, str] = EMPTY_LABELS


class Driver(Protocol):
    """Storage backend of a snapshotter. `OSError` may rise from every method but `mounts`."""

    @property
    def abilities(self) -> frozenset[Ability]:
        """What this driver, on this machine, can do beyond the methods below."""
        ...

    def create(self, snapshot: Snapshot) -> None:
        """Make the storage of a new View or Active snapshot.

        Raises:
            InvalidArgument: a label makes no sense to this driver.
            ResourceExhausted: there is no room for it.
        """
        ...

    def mounts(self, snapshot: Snapshot) -> list[Mount]:
        """Return how to mount it. Cheap, repeatable, without side effects on other snapshots."""
        ...

    def seal(self, snapshot: Snapshot) -> Usage:
        """Make an Active snapshot fit to be a parent, and measure it.

        Called before the store says Committed; a crash in between means that the snapshot is
        Active again and `seal` is called once more.
        """
        ...

    def usage(self, snapshot: Snapshot) -> Usage:
        """Measure a View or Active snapshot now, its parents not counted."""
        ...

    def destroy(self, id: int) -> None:
        """Free all storage of that id, whole or half made; nothing there is no error."""
        ...

    def ids(self) -> Iterable[int]:
        """List the ids for which there is storage, half made ones included.

        Every snapshot has some between `create` and `destroy`, be it a mark: what has none is
        taken for damaged.
        """
        ...

    def sync(self) -> None:
        """Make all sealed storage survive power loss; called once for many commits."""
        ...

    def info_labels(self, id: int) -> Mapping[str, str]:
        """Return labels to show in Stat and Walk beside the stored ones; usually none."""
        ...

    def close(self) -> None:
        """Let go of descriptors; called once."""
        ...


@runtime_checkable
class Prompt(Protocol):
    """What a driver may say besides: that its `mounts` waits for no lock, device or process.

    The daemon asks such a driver between two other calls, on its event loop.
    """

    mounts_at_once: bool


@runtime_checkable
class Mounting(Protocol):
    """What a driver may say besides: that it mounts layers itself, where `mounts` names them.

    Clients in other mount namespaces, which the daemon has, are asked whether they see them.
    """

    mounts_layers: bool


@runtime_checkable
class Inspectable(Protocol):
    """What a driver may have besides: it keeps more than files, and can tell what is amiss there.

    For devices, mounts, datasets, a pool: whatever the kernel or a volume manager knows of and
    `ids` does not show.
    """

    def faults(self, exists: Callable[[int], bool]) -> Iterable[Problem]:
        """Return what is wrong with them; changes nothing.

        A problem whose subject is an id counts only while that snapshot has all of its storage.

        Args:
            exists: tells whether there is a snapshot of that id, or storage of one that waits to
                be freed. Ask it after the object was seen: every object has its row before it.
        """
        ...


@runtime_checkable
class Thorough(Protocol):
    """What a driver may have besides: it can look for damage by reading all of its metadata."""

    def damage(self, exists: Callable[[int], bool]) -> Iterable[Problem]:
        """Return what takes long to find, and `Inspectable.faults` does not tell; see there."""
        ...


@runtime_checkable
class Settling(Protocol):
    """What a driver may have besides: `seal` leaves an Active snapshot's storage as it was.

    So nothing is lost where the commit comes to nothing; where it does not, `settle` frees it.
    """

    def settle(self, ids: Iterable[int]) -> None:
        """Free what these snapshots have kept from when they were Active.

        They are Committed, and `sync` has been called since. Called more than once, perhaps, and
        for ids whose storage is gone. A failure is a warning, after which it is not called again
        for these: `destroy` frees what is left.
        """
        ...


@runtime_checkable
class Forkable(Protocol):
    """What a driver may have besides: it copies an Active snapshot while that is in use.

    Attributes:
        forks_atomically: the copy is the source at one moment, as after a power cut then; else
            files that are written to meanwhile may be copied half old and half new. Either way it
            has everything that was written, and closed or synced, before the call, unless it is
            moved to another directory meanwhile where the copy is not atomic.
    """

    forks_atomically: bool

    def fork(self, source: Snapshot, target: Snapshot) -> None:
        """Make the storage of `target`, as `create` does, with the content that `source` has now.

        Afterwards neither depends on the other: each is written to, sealed and destroyed in any
        order. `destroy` follows a failure, as it does after `create`.

        Args:
            source: an Active snapshot, mounted and written to by others or not. It is neither
                sealed nor destroyed during the call.
            target: an Active snapshot with the same parents.

        Raises:
            ResourceExhausted: there is no room for it.
        """
        ...


@runtime_checkable
class Imaging(Protocol):
    """What a driver may have besides: its layers are EROFS images, and it takes one as it is.

    Whoever unpacks a layer then writes the image from the layer's archive while that arrives. No
    directory is filled, and read again by `seal`.
    """

    def layer_image(self, snapshot: Snapshot) -> Path | None:
        """Return the file that takes the image of all that an Active snapshot is to change.

        It does not exist yet, and is removed where it cannot be made whole; what a kill leaves has
        no superblock. `seal` follows where it is whole, and checks no more than that. None: this
        snapshot takes none, and the layer is extracted to where `mounts` says.
        """
        ...


class Shrunk(NamedTuple):
    """What `Evicting.shrink` has done.

    Attributes:
        layers: ids of those that were emptied.
        freed: bytes of disk.
        left: bytes of disk that all layers take now.
    """

    layers: tuple[int, ...]
    freed: int
    left: int


@runtime_checkable
class Evicting(Protocol):
    """What a driver may have besides: it can do without data that it has from elsewhere.

    Attributes:
        is_used: set by the engine: tells whether an Active snapshot or a View stands on an id, is
            about to, or is it.
    """

    is_used: Callable[[int], bool]

    def shrink(self, to: int | None = None) -> Shrunk:
        """Empty layers, those that were used longest ago first, until the rest fits.

        What is in use stays. What is emptied comes again when it is read.

        Args:
            to: bytes of disk; None for what the configuration says, which may be no bound.
        """
        ...

    def growth(self, id: int) -> int:
        """Return the bytes of disk that a Committed snapshot takes now beyond what `seal` told."""
        ...


class Claimed(NamedTuple):
    """A driver serves a layer itself.

    Attributes:
        labels: what the Committed snapshot is to carry besides those it was prepared with.
    """

    labels: Mapping[str, str] = EMPTY_LABELS


class Refused(NamedTuple):
    """A driver leaves a layer to be unpacked.

    Attributes:
        reason: why, to follow "layer ... is unpacked: ".
    """

    reason: str


class LazyFiles(NamedTuple):
    """Where a lazy layer, or the part of it that one blob has, is.

    Attributes:
        image: its metadata, an EROFS image; None where names are on the device itself.
        cache: directory of its cache, which `lamina.lazy` knows.
        device: number of the image's device that is the cache file.
    """

    image: Path | None
    cache: Path
    device: int = 1


@runtime_checkable
class Lazy(Protocol):
    """What a driver may have besides: layers whose data comes when it is read.

    The worker that serves them keeps its files in the snapshotter's own directory.
    """

    def lazy_layers(self, id: int) -> tuple[LazyFiles, ...]:
        """Return where a layer's files are, for each of its caches; none if it is not lazy."""
        ...

    def serve(self, id: int) -> None:
        """Have the worker serve a lazy layer, unless it is complete.

        Raises:
            DataLoss: something of it is gone.
            Unavailable: no worker can be started.
        """
        ...


@runtime_checkable
class Remote(Protocol):
    """What a driver may have besides: it serves layers from elsewhere, such as a registry.

    Such a driver does not declare REBASE: a claimed layer is committed at once, on the parent that
    its extraction snapshot was prepared with.
    """

    def claim(self, snapshot: Snapshot) -> Claimed | Refused:
        """Put the layer that an extraction snapshot's labels describe where `seal` finds it.

        Called after `create` for snapshots with the label SNAPSHOT_REF, and followed by `seal`
        where the answer is Claimed. Whatever else comes of it, errors included, the storage is as
        `create` has made it.

        Raises:
            LaminaError: it was tried and failed; the layer is unpacked then, as if refused.
        """
        ...

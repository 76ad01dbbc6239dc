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

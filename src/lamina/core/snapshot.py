"""What a snapshot is: its kind, its description, its cost, and the contract of a snapshotter.

Terms: a *key* names a View or Active snapshot, a *name* a Committed one; both live in one flat
space. A *parent* is always the name of a Committed snapshot, or "" for none. Keys are opaque: a
containerd daemon sends ones with slashes, spaces and colons, so no key is ever used as a file name.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import NamedTuple, Self

from lamina.core.mount import Mount

EPOCH = datetime.fromtimestamp(0, UTC)
EMPTY_LABELS: Mapping[str, str] = MappingProxyType({})


class Kind(enum.IntEnum):
    """Kind of a snapshot; the numbers are containerd's, on the wire and on disk."""

    UNKNOWN = 0
    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3

    def __str__(self) -> str:
        """Spell it as containerd does: `Committed`."""
        return self.name.capitalize()

    @classmethod
    def parse(cls, text: str) -> Kind:
        """Return the kind of that name, in any case; anything else is UNKNOWN, as in containerd."""
        return cls.__members__.get(text.upper(), cls.UNKNOWN)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a snapshot occupies by itself, its parents not counted: inodes, and bytes of blocks."""

    inodes: int = 0
    size: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.inodes + other.inodes, self.size + other.size)


class Info(NamedTuple):
    """Description of one snapshot, as Stat and Walk give it. Times are UTC."""

    name: str
    kind: Kind = Kind.UNKNOWN
    parent: str = ""
    labels: Mapping[str, str] = EMPTY_LABELS
    created: datetime = EPOCH
    updated: datetime = EPOCH


class Snapshotter(ABC):
    """The contract of containerd's snapshotters: engine and gRPC client implement it.

    Lifecycle: `prepare` makes an Active snapshot, the caller mounts it and writes, `commit` turns
    it into a Committed one that others can have as parent. `view` makes a read-only one that can
    never be committed. No method mounts its result; `mounts` may be asked again at any time, after
    a restart too.

    Every method raises `NotFound` for an unknown key unless it says otherwise. Methods may be
    called from several threads and, for one root, from several processes at once.

    Attributes:
        mounts_at_once: `mounts` waits for no lock, device or other process.
        mounts_layers: what `mounts` names is, or stands on, what was mounted in this process's
            mount namespace.
    """

    mounts_at_once = False
    mounts_layers = False

    @abstractmethod
    def stat(self, key: str) -> Info:
        """Describe the snapshot of any kind."""

    @abstractmethod
    def update(self, info: Info, *fieldpaths: str) -> Info:
        """Change the labels of `info.name` and return what is stored then.

        Without field paths, or with `labels`, all labels are replaced; `labels.KEY` (KEY verbatim,
        dots and slashes included) sets that one label, or deletes it where `info` lacks it. Other
        fields of `info` are ignored.

        Raises:
            InvalidArgument: any other field path; nothing is changed then.
        """

    @abstractmethod
    def usage(self, key: str) -> Usage:
        """Measure an Active snapshot, or tell what was measured when it was committed."""

    @abstractmethod
    def mounts(self, key: str) -> list[Mount]:
        """Return the mounts that `prepare` or `view` returned for this key.

        Raises:
            FailedPrecondition: the snapshot is Committed.
        """

    @abstractmethod
    def prepare(
        self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        """Make an Active snapshot on top of `parent` and return its mounts.

        Raises:
            AlreadyExists: the key is taken, by a snapshot of any kind.
            NotFound: no such parent.
            InvalidArgument: the parent is not Committed, or the key is empty.
        """

    @abstractmethod
    def view(
        self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        """Make a read-only snapshot of `parent`; raises as `prepare` does."""

    @abstractmethod
    def fork(self, key: str, new: str, *, labels: Mapping[str, str] | None = None) -> list[Mount]:
        """Copy the Active snapshot `key`, while it is used, as the Active `new`; return its mounts.

        The fork has the source's parent and labels: without those that keep either from garbage
        collection or say what an extraction is for, with `labels` on top, and with FORKED_FROM.
        From then on the two are independent. `docs/fork.md` tells what a fork sees of a source
        that is written to meanwhile. The source is neither committed nor removed during the call:
        that fails with FailedPrecondition.

        Raises:
            NotFound: no such source.
            FailedPrecondition: the source is not Active, or being committed.
            AlreadyExists: the new key is taken.
            NotImplementedHere: the snapshotter cannot fork.
            ResourceExhausted: there is no room.
        """

    @abstractmethod
    def commit(
        self, name: str, key: str, *, labels: Mapping[str, str] | None = None, parent: str = ""
    ) -> None:
        """Turn the Active snapshot `key` into the Committed one `name`; `key` is free then.

        The labels are replaced by those given. `parent` may be given for a snapshot that was
        prepared without one (rebase), where the driver can; for others it must be the one they
        have.

        Raises:
            AlreadyExists: the name is taken (checked before all else).
            NotFound: no such key, or no such new parent.
            FailedPrecondition: the snapshot is not Active, or the new parent not Committed.
            InvalidArgument: the parent would change from one to another.
        """

    @abstractmethod
    def remove(self, key: str) -> None:
        """Remove the snapshot; its key is free at once, its space some time later.

        Raises:
            FailedPrecondition: another snapshot has it as parent.
        """

    @abstractmethod
    def walk(self, filters: Sequence[str] = ()) -> Iterator[Info]:
        """Yield every snapshot that one of the filters matches, in byte order of the keys.

        Other methods may be called while the iterator is open; what they change may or may not be
        seen by it.

        Raises:
            InvalidArgument: a filter does not parse.
        """

    @abstractmethod
    def cleanup(self) -> None:
        """Free now whatever removed or abandoned snapshots still occupy, and return when done."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the store; calling it again does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

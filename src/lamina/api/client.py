"""A snapshotter that is somewhere else: behind a socket of Lamina's or of a containerd."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from google.protobuf.message import DecodeError, Message

from lamina.api.convert import info_from_wire, info_to_wire, mounts_from_wire, usage_from_wire
from lamina.api.service import SERVICE
from lamina.api.wire import snapshots_pb2 as pb
from lamina.core.labels import FORK_OF, FORKED_FROM
from lamina.core.mount import Mount
from lamina.core.snapshot import Info, Kind, Snapshotter, Usage
from lamina.errors import DataLoss, FailedPrecondition, InvalidArgument, NotImplementedHere

if TYPE_CHECKING:
    from lamina.api.channel import Channel

P = ParamSpec("P")
M = TypeVar("M", bound=Message)

NAMESPACE_HEADER = "containerd-namespace"


class RemoteSnapshotter(Snapshotter):
    """A daemon's snapshotter; every method raises what the daemon's own would.

    Beside that, every method raises `Unavailable` where nobody listens, and `InvalidArgument` where
    the daemon has no such snapshotter, or a string has bytes that are not UTF-8.

    Args:
        channel: the way to the daemon; stays open when this is closed.
        name: the daemon's name for the snapshotter; for a containerd that of its plugin.
        namespace: containerd's namespace to work in; Lamina's daemon knows none.
    """

    def __init__(self, channel: Channel, name: str, *, namespace: str = "") -> None:
        self.name = name
        self._channel = channel
        self._metadata = {NAMESPACE_HEADER: namespace} if namespace else {}

    def stat(self, key: str) -> Info:
        """Describe the snapshot."""
        request = _encoded(pb.StatSnapshotRequest, snapshotter=self.name, key=key)
        return info_from_wire(self._call("Stat", request, pb.StatSnapshotResponse).info)

    def update(self, info: Info, *fieldpaths: str) -> Info:
        """Change labels; see `Snapshotter.update`."""
        request = _encoded(
            pb.UpdateSnapshotRequest,
            snapshotter=self.name,
            info=_encoded(info_to_wire, info),
            update_mask={"paths": fieldpaths},
        )
        return info_from_wire(self._call("Update", request, pb.UpdateSnapshotResponse).info)

    def usage(self, key: str) -> Usage:
        """Have the snapshot measured."""
        request = _encoded(pb.UsageRequest, snapshotter=self.name, key=key)
        return usage_from_wire(self._call("Usage", request, pb.UsageResponse))

    def mounts(self, key: str) -> list[Mount]:
        """Return the mounts of an Active snapshot or a View, with the daemon's paths."""
        request = _encoded(pb.MountsRequest, snapshotter=self.name, key=key)
        return mounts_from_wire(self._call("Mounts", request, pb.MountsResponse).mounts)

    def prepare(
        self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        """Make an Active snapshot; see `Snapshotter.prepare`."""
        request = _encoded(
            pb.PrepareSnapshotRequest, snapshotter=self.name, key=key, parent=parent, labels=labels
        )
        return mounts_from_wire(self._call("Prepare", request, pb.PrepareSnapshotResponse).mounts)

    def view(
        self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        """Make a View; see `Snapshotter.view`."""
        request = _encoded(
            pb.ViewSnapshotRequest, snapshotter=self.name, key=key, parent=parent, labels=labels
        )
        return mounts_from_wire(self._call("View", request, pb.ViewSnapshotResponse).mounts)

    def fork(self, key: str, new: str, *, labels: Mapping[str, str] | None = None) -> list[Mount]:
        """Have a snapshot forked, by Prepare with a label; see `Snapshotter.fork`.

        Raises:
            NotImplementedHere: the snapshotter cannot, or is not Lamina's.
        """
        source = self.stat(key)
        if source.kind != Kind.ACTIVE:
            hint = f"it is {source.kind}, not Active: prepare a snapshot instead"
            raise FailedPrecondition("fork snapshot", key, hint=hint)
        mounts = self.prepare(new, source.parent, labels={**(labels or {}), FORK_OF: key})
        if FORKED_FROM in self.stat(new).labels:
            return mounts
        self.remove(new)  # others ignore the label, and have made an unchanged one
        raise NotImplementedHere(
            f"fork snapshot with the daemon's {self.name}", key,
            hint="it is not Lamina's: use a daemon of Lamina's, or commit and prepare on that",
        )  # fmt: skip

    def commit(
        self, name: str, key: str, *, labels: Mapping[str, str] | None = None, parent: str = ""
    ) -> None:
        """Commit an Active snapshot; see `Snapshotter.commit`."""
        request = _encoded(
            pb.CommitSnapshotRequest,
            snapshotter=self.name,
            name=name,
            key=key,
            labels=labels,
            parent=parent,
        )
        self._send("Commit", request)

    def remove(self, key: str) -> None:
        """Remove the snapshot."""
        self._send("Remove", _encoded(pb.RemoveSnapshotRequest, snapshotter=self.name, key=key))

    def walk(self, filters: Sequence[str] = ()) -> Iterator[Info]:
        """Yield what a filter matches, in the daemon's order; close it to give up earlier."""
        request = _encoded(pb.ListSnapshotsRequest, snapshotter=self.name, filters=filters)
        messages = self._channel.stream(
            _path("List"), request.SerializeToString(), metadata=self._metadata
        )
        for data in messages:
            for message in _decoded(pb.ListSnapshotsResponse, data).info:
                yield info_from_wire(message)

    def cleanup(self) -> None:
        """Have the daemon free what removed snapshots still occupy.

        Raises:
            NotImplementedHere: its snapshotter needs no such thing.
        """
        self._send("Cleanup", _encoded(pb.CleanupRequest, snapshotter=self.name))

    def close(self) -> None:
        """Do nothing: the channel is its maker's."""

    def _call(self, name: str, request: Message, kind: type[M]) -> M:
        return _decoded(kind, self._send(name, request))

    def _send(self, name: str, request: Message) -> bytes:
        return self._channel.unary(
            _path(name), request.SerializeToString(), metadata=self._metadata
        )


def _path(name: str) -> str:
    return f"/{SERVICE}/{name}"


def _encoded(make: Callable[P, M], *args: P.args, **kwargs: P.kwargs) -> M:
    """Make a message; strings are encoded as it is made."""
    try:
        return make(*args, **kwargs)
    except UnicodeEncodeError as error:
        text = repr(error.object)
        raise InvalidArgument("send to a daemon what is not Unicode text", text) from error


def _decoded(kind: type[M], data: bytes) -> M:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise DataLoss(f"decode the daemon's {kind.__name__}: {error}") from error

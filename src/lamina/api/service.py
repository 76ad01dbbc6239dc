"""containerd's snapshot service, in front of any number of snapshotters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, Self, TypeVar

from google.protobuf.message import DecodeError, Message

from lamina.api.call import Call, Inline, Method
from lamina.api.convert import info_from_wire, info_to_wire, mounts_to_wire, usage_to_wire
from lamina.api.status import OK, to_status
from lamina.api.visible import require_visible
from lamina.api.wire import snapshots_pb2 as pb
from lamina.core.mount import Mount
from lamina.core.snapshot import Info, Snapshotter
from lamina.errors import Cancelled, FailedPrecondition, InvalidArgument, LaminaError

SERVICE = "containerd.services.snapshots.v1.Snapshots"
LIST_BATCH = 100
"""Descriptions in one message of List, as containerd sends them."""

Lookup = Callable[[str], Snapshotter]
"""Returns the snapshotter that a request names, or raises what the caller is to be told."""

Observer = Callable[[str, str, str, int, float, BaseException | None], None]
"""Told of every call that has ended: its name (`Stat`), the snapshotter and the key as in the
request ("" where it has none), the status code, the seconds it took, and the error if it failed."""


def snapshots_methods(lookup: Lookup, observe: Observer) -> Mapping[str, Method]:
    """Return the service's methods by path, for a `Server`."""
    service = _Service(lookup, observe)
    methods = {
        # Neither waits: they are one read of the store, and a driver has said so of its `mounts`.
        "Stat": service.unary("Stat", pb.StatSnapshotRequest, _stat, inline=True),
        "Mounts": service.unary("Mounts", pb.MountsRequest, _mounts, inline=service.mounts_at_once),
        "Prepare": service.unary("Prepare", pb.PrepareSnapshotRequest, _prepare),
        "View": service.unary("View", pb.ViewSnapshotRequest, _view),
        "Commit": service.unary("Commit", pb.CommitSnapshotRequest, _commit),
        "Remove": service.unary("Remove", pb.RemoveSnapshotRequest, _remove),
        "Update": service.unary("Update", pb.UpdateSnapshotRequest, _update),
        "Usage": service.unary("Usage", pb.UsageRequest, _usage),
        "Cleanup": service.unary("Cleanup", pb.CleanupRequest, _cleanup),
        "List": Method(service.list, stream=True),
    }
    return {f"/{SERVICE}/{name}": method for name, method in methods.items()}


class _Request(Protocol):
    """What all requests have."""

    snapshotter: str

    @classmethod
    def FromString(cls, s: bytes) -> Self: ...


R = TypeVar("R", bound=_Request)


class _Service:
    """Does for every method what is the same for all."""

    def __init__(self, lookup: Lookup, observe: Observer) -> None:
        self._lookup = lookup
        self._observe = observe

    def unary(
        self,
        name: str,
        kind: type[R],
        handle: Callable[[Snapshotter, R, Call], Message | None],
        *,
        inline: bool | Inline = False,
    ) -> Method:
        """Return a method; `handle` may return None for the empty response."""

        def handler(data: bytes, call: Call) -> bytes:
            started = time.perf_counter()
            snapshotter, key = "", ""
            try:
                request = _decode(kind, data)
                snapshotter, key = request.snapshotter, _key(request)
                response = handle(self._lookup(snapshotter), request, call)
                encoded = b"" if response is None else response.SerializeToString()
            except BaseException as error:
                self._failed(name, snapshotter, key, started, error)
                raise
            self._observe(name, snapshotter, key, OK, time.perf_counter() - started, None)
            return encoded

        return Method(handler, inline=inline)

    def mounts_at_once(self, data: bytes) -> bool:
        """Tell whether the snapshotter that a request for mounts names answers without waiting."""
        try:
            return self._lookup(_decode(pb.MountsRequest, data).snapshotter).mounts_at_once
        except LaminaError:
            return True  # which is the answer, and the handler's to give

    def list(self, data: bytes, call: Call) -> Iterator[bytes]:
        """Yield the messages of List; none at all where no snapshot matches."""
        started = time.perf_counter()
        snapshotter = ""
        try:
            request = _decode(pb.ListSnapshotsRequest, data)
            snapshotter = request.snapshotter
            target = self._lookup(snapshotter)
            for batch in _batches(target.walk(list(request.filters))):
                call.check()
                yield pb.ListSnapshotsResponse(info=batch).SerializeToString()
        except BaseException as error:
            self._failed("List", snapshotter, "", started, error)
            raise
        self._observe("List", snapshotter, "", OK, time.perf_counter() - started, None)

    def _failed(
        self, name: str, snapshotter: str, key: str, started: float, error: BaseException
    ) -> None:
        # A stream that nobody reads to its end is closed in the middle.
        gone = isinstance(error, GeneratorExit)
        code = Cancelled.grpc_code if gone else to_status(error)[0]
        self._observe(name, snapshotter, key, code, time.perf_counter() - started, error)


def _stat(snapshotter: Snapshotter, request: pb.StatSnapshotRequest, _: Call) -> Message:
    return pb.StatSnapshotResponse(info=info_to_wire(snapshotter.stat(request.key)))


def _mounts(snapshotter: Snapshotter, request: pb.MountsRequest, call: Call) -> Message:
    mounts = snapshotter.mounts(request.key)
    if snapshotter.mounts_layers:
        require_visible(mounts, call.peer)
    return pb.MountsResponse(mounts=mounts_to_wire(mounts))


def _prepare(snapshotter: Snapshotter, request: pb.PrepareSnapshotRequest, call: Call) -> Message:
    labels = dict(request.labels) or None
    mounts = snapshotter.prepare(request.key, request.parent, labels=labels)
    _require_usable(snapshotter, request.key, mounts, call)
    return pb.PrepareSnapshotResponse(mounts=mounts_to_wire(mounts))


def _view(snapshotter: Snapshotter, request: pb.ViewSnapshotRequest, call: Call) -> Message:
    labels = dict(request.labels) or None
    mounts = snapshotter.view(request.key, request.parent, labels=labels)
    _require_usable(snapshotter, request.key, mounts, call)
    return pb.ViewSnapshotResponse(mounts=mounts_to_wire(mounts))


def _require_usable(
    snapshotter: Snapshotter, key: str, mounts: Sequence[Mount], call: Call
) -> None:
    """Take back a snapshot whose layers the caller would not see."""
    if not snapshotter.mounts_layers:
        return
    try:
        require_visible(mounts, call.peer)
    except FailedPrecondition:
        snapshotter.remove(key)
        raise


def _commit(snapshotter: Snapshotter, request: pb.CommitSnapshotRequest, _: Call) -> None:
    labels = dict(request.labels) or None
    snapshotter.commit(request.name, request.key, labels=labels, parent=request.parent)


def _remove(snapshotter: Snapshotter, request: pb.RemoveSnapshotRequest, _: Call) -> None:
    snapshotter.remove(request.key)


def _update(snapshotter: Snapshotter, request: pb.UpdateSnapshotRequest, _: Call) -> Message:
    if not request.HasField("info"):
        raise InvalidArgument("update snapshot: the request has no info")
    info = info_from_wire(request.info)
    stored = snapshotter.update(info, *request.update_mask.paths)
    return pb.UpdateSnapshotResponse(info=info_to_wire(stored))


def _usage(snapshotter: Snapshotter, request: pb.UsageRequest, _: Call) -> Message:
    return usage_to_wire(snapshotter.usage(request.key))


def _cleanup(snapshotter: Snapshotter, request: pb.CleanupRequest, _: Call) -> None:
    snapshotter.cleanup()


def _key(request: object) -> str:
    """Return what a request is about, for messages."""
    key = getattr(request, "key", None)
    if key is not None:
        return str(key)
    return str(getattr(getattr(request, "info", None), "name", ""))


def _decode(kind: type[R], data: bytes) -> R:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidArgument(f"decode {kind.__name__}: {error}") from error


def _batches(infos: Iterator[Info]) -> Iterator[list[pb.Info]]:
    batch: list[pb.Info] = []
    for info in infos:
        batch.append(info_to_wire(info))
        if len(batch) == LIST_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch

"""Snapshots' values as messages, and back."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from lamina.api.wire import mount_pb2, snapshots_pb2
from lamina.core.mount import Mount
from lamina.core.snapshot import EPOCH, Info, Kind, Usage

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

_EARLIEST = datetime.min.replace(tzinfo=UTC)
_LATEST = datetime.max.replace(tzinfo=UTC)

# Whatever is neither of these is COMMITTED, in both directions, as in containerd.
_KIND_TO_WIRE = {Kind.VIEW: snapshots_pb2.VIEW, Kind.ACTIVE: snapshots_pb2.ACTIVE}
_KIND_FROM_WIRE = {number: kind for kind, number in _KIND_TO_WIRE.items()}


def info_to_wire(info: Info) -> snapshots_pb2.Info:
    """Return the description as a message."""
    message = snapshots_pb2.Info(
        name=info.name,
        parent=info.parent,
        kind=_KIND_TO_WIRE.get(info.kind, snapshots_pb2.COMMITTED),
        labels=info.labels,
    )
    _time_to_wire(info.created, message.created_at)
    _time_to_wire(info.updated, message.updated_at)
    return message


def info_from_wire(message: snapshots_pb2.Info) -> Info:
    """Return the description that a message has; parts of a microsecond are cut off."""
    return Info(
        name=message.name,
        kind=_KIND_FROM_WIRE.get(message.kind, Kind.COMMITTED),
        parent=message.parent,
        labels=dict(message.labels),
        created=_time_from_wire(message.created_at),
        updated=_time_from_wire(message.updated_at),
    )


def mounts_to_wire(mounts: Iterable[Mount]) -> list[mount_pb2.Mount]:
    """Return mounts as messages."""
    return [
        mount_pb2.Mount(type=m.type, source=m.source, target=m.target, options=m.options)
        for m in mounts
    ]


def mounts_from_wire(messages: Iterable[mount_pb2.Mount]) -> list[Mount]:
    """Return the mounts that messages have."""
    return [Mount(m.type, m.source, m.target, tuple(m.options)) for m in messages]


def usage_to_wire(usage: Usage) -> snapshots_pb2.UsageResponse:
    """Return what a snapshot occupies as a message."""
    return snapshots_pb2.UsageResponse(size=usage.size, inodes=usage.inodes)


def usage_from_wire(message: snapshots_pb2.UsageResponse) -> Usage:
    """Return what a message says that a snapshot occupies."""
    return Usage(inodes=message.inodes, size=message.size)


def _time_to_wire(time: datetime, message: Timestamp) -> None:
    since = time - EPOCH
    message.seconds = since.days * 86400 + since.seconds
    message.nanos = since.microseconds * 1000


def _time_from_wire(message: Timestamp) -> datetime:
    """Return the time; one outside Python's years 1 to 9999 becomes the nearest inside."""
    try:
        return EPOCH + timedelta(seconds=message.seconds, microseconds=message.nanos // 1000)
    except OverflowError:
        return _LATEST if message.seconds > 0 else _EARLIEST

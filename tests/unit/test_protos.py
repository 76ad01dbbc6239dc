"""The messages are what `script/protos` makes of `proto/`, and keep to themselves."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from lamina.api.wire import mount_pb2, snapshots_pb2

TOP = Path(__file__).parents[2]
CLASH = """
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
file = descriptor_pb2.FileDescriptorProto(
    name="lamina/api/wire/mount.proto", package="containerd.types", syntax="proto3"
)
file.message_type.add(name="Mount").field.add(name="kind", number=9, type=9, label=1)
theirs = descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
theirs = message_factory.GetMessageClass(theirs.message_types_by_name["Mount"])
from lamina.api.wire import mount_pb2, snapshots_pb2
ours = snapshots_pb2.MountsResponse(mounts=[mount_pb2.Mount(type="bind")])
print(theirs(kind="x").SerializeToString(), ours.SerializeToString())
"""


@pytest.mark.skipif(
    importlib.util.find_spec("grpc_tools") is None, reason="needs grpcio-tools, of the dev extra"
)
def test_generated_is_what_is_committed() -> None:
    command = [sys.executable, str(TOP / "script/protos.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_another_copy_of_the_messages_does_not_clash() -> None:
    command = [sys.executable, "-c", CLASH]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("b'J\\x01x' b'\\n\\x06\\n\\x04bind'\n", "")


def test_field_numbers_are_containerds() -> None:
    commit = snapshots_pb2.CommitSnapshotRequest(
        snapshotter="s", name="n", key="k", labels={"l": "v"}, parent="p"
    )
    assert commit.SerializeToString() == (
        b"\x0a\x01s\x12\x01n\x1a\x01k\x22\x06\x0a\x01l\x12\x01v\x2a\x01p"
    )
    usage = snapshots_pb2.UsageResponse(size=1, inodes=-1)
    assert usage.SerializeToString() == b"\x08\x01\x10" + b"\xff" * 9 + b"\x01"
    info = snapshots_pb2.Info(name="n", parent="p", kind=snapshots_pb2.COMMITTED)
    info.created_at.seconds = 1
    info.updated_at.nanos = 2
    assert info.SerializeToString() == (
        b"\x0a\x01n\x12\x01p\x18\x03\x22\x02\x08\x01\x2a\x02\x10\x02"
    )
    mount = mount_pb2.Mount(type="t", source="s", target="u", options=["a", "b"])
    assert mount.SerializeToString() == b"\x0a\x01t\x12\x01s\x1a\x01u\x22\x01a\x22\x01b"
    assert snapshots_pb2.Kind.items() == [
        ("UNKNOWN", 0),
        ("VIEW", 1),
        ("ACTIVE", 2),
        ("COMMITTED", 3),
    ]

"""The descriptor pool of Lamina's messages.

It is a private one. protobuf's default pool takes a message's full name once per process, and a
user's program may well have its own copy of `containerd.types.Mount` in it. Nor is the code that
`protoc` writes for Python used: each release of that works with two major versions of protobuf
only, the descriptors and the functions below with every version since 4.25.
"""

from __future__ import annotations

from google.protobuf import empty_pb2, field_mask_pb2, timestamp_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message_factory import GetMessageClass

POOL = DescriptorPool()
for _module in (empty_pb2, field_mask_pb2, timestamp_pb2):
    POOL.AddSerializedFile(_module.DESCRIPTOR.serialized_pb)


def load(serialized: bytes) -> dict[str, object]:
    """Add a file (a `FileDescriptorProto`) to the pool; return its messages and enums by name.

    A file comes after those that it imports.
    """
    file = POOL.AddSerializedFile(serialized)
    found: dict[str, object] = {"DESCRIPTOR": file}
    for name, message in file.message_types_by_name.items():
        found[name] = GetMessageClass(message)
    for name, enum in file.enum_types_by_name.items():
        found[name] = EnumTypeWrapper(enum)
        found.update((value.name, value.number) for value in enum.values)
    return found

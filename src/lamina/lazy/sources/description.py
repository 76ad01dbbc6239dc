"""What `layer.json` says of a layer's source. It has no credentials: those are asked for anew."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from lamina.core.source import RangeSource


class FileDescription(msgspec.Struct, frozen=True, tag="file", tag_field="type"):
    """A file with the encoded bytes; an absolute path."""

    path: str


class RegistryDescription(msgspec.Struct, frozen=True, tag="registry", tag_field="type"):
    """A blob in a registry.

    Attributes:
        reference: the image's, with its registry's name, such as `docker.io/library/alpine:3`.
        digest: the blob's.
        size: in bytes.
        media_type: of the descriptor.
    """

    reference: str
    digest: str
    size: int
    media_type: str = "application/octet-stream"


class DeviceDescription(msgspec.Struct, frozen=True, tag="device", tag_field="type"):
    """Layers that make a device together; whoever opens the cache knows which.

    Attributes:
        layers: how many.
    """

    layers: int


SourceDescription = FileDescription | RegistryDescription | DeviceDescription

Opener = Callable[[SourceDescription], RangeSource]
"""Opens a source when its first bytes are needed; raises what `read_at` may raise."""

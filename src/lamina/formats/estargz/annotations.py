"""Annotations of a layer in its manifest that say how its blob can be read."""

from __future__ import annotations

TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
"""Of the uncompressed TOC; a label of the layer's snapshot too."""
UNCOMPRESSED_SIZE = "io.containers.estargz.uncompressed-size"
"""Bytes of the tar, in decimal."""
CHUNKED_DIGESTS = (
    "io.github.containers.zstd-chunked.manifest-checksum",
    "io.containers.zstd-chunked.manifest-checksum",
)
"""Of the compressed TOC of a zstd:chunked layer: Podman's name, and stargz-snapshotter's."""
CHUNKED_POSITIONS = (
    "io.github.containers.zstd-chunked.manifest-position",
    "io.containers.zstd-chunked.manifest-position",
)
"""`OFFSET:COMPRESSED:UNCOMPRESSED:TYPE` of that TOC, in bytes; the type is 1."""
PREFIXES = (
    TOC_DIGEST,
    "io.containers.estargz.",
    "io.containers.zstd-chunked.",
    "io.github.containers.zstd-chunked.",
)
"""What those begin with that are about one blob, and untrue of another."""

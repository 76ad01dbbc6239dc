"""Media types, annotations and names by which a Nydus image and its parts are known.

Which kind a layer is, is told by an annotation's presence alone: its value does not count. Where a
layer is unpacked, its annotations are labels of the snapshot.
"""

from __future__ import annotations

BLOB_MEDIA_TYPE = "application/vnd.oci.image.layer.nydus.blob.v1"
"""Of a layer that is a blob; its diff id is its digest."""

BLOB = "containerd.io/snapshot/nydus-blob"
BOOTSTRAP = "containerd.io/snapshot/nydus-bootstrap"
"""Of the last layer: a tar with the bootstrap."""
FS_VERSION = "containerd.io/snapshot/nydus-fs-version"
"""Of the bootstrap's layer: `5`, `6`, or `7` for Nydus 3's own format."""
REF = "containerd.io/snapshot/nydus-ref"
"""Digest of the gzip layer that a blob with nothing but `blob.meta` is about."""
REFERENCE_BLOB_IDS = "containerd.io/snapshot/nydus-reference-blob-ids"
"""JSON list of the ids of blobs that other images brought along."""
ENCRYPTED = "containerd.io/snapshot/nydus-encrypted-blob"

PREFIX = "containerd.io/snapshot/nydus-"
"""What all of these begin with that are about one layer, and untrue of another."""

BOOTSTRAP_PATH = "image/image.boot"
"""The bootstrap in its layer."""
OLD_BOOTSTRAP_PATH = "image.boot"
"""The same in layers of old builders."""

"""Labels that mean something to snapshotters, and the rules for label maps."""

from __future__ import annotations

from collections.abc import Mapping

from lamina.errors import InvalidArgument

SNAPSHOT_REF = "containerd.io/snapshot.ref"
"""Chain id that an extraction snapshot is to become; the remote snapshot protocol's question."""
DIFF_ID = "containerd.io/snapshot/diff-id"
"""Uncompressed digest of the layer that an extraction snapshot is made for."""
PARENT_CHAIN_ID = "containerd.io/snapshot/parent-chain-id"
"""Chain id of the layer below, given even where the snapshot is prepared without a parent."""
UID_MAPPING = "containerd.io/snapshot/uidmapping"
GID_MAPPING = "containerd.io/snapshot/gidmapping"
"""`containerID:hostID:size[,...]`: the snapshot is used in a user namespace with these maps."""
MAX_SIZE = "containerd.io/snapshot/max-size"
"""Upper bound in bytes of what may be written, as a decimal string; a driver may ignore it."""
OVERLAY_UPPERDIR = "containerd.io/snapshot/overlay.upperdir"
"""Path of the upper directory; shown by overlayfs with `upperdir_label`, never stored."""
OVERLAY_VOLATILE = "containerd.io/snapshot/overlay.volatile"
"""`true`: mount with `volatile`, for snapshots that nobody will commit (Lamina's own label)."""
GC_ROOT = "containerd.io/gc.root"
GC_EXPIRE = "containerd.io/gc.expire"
"""When a lease ends, RFC 3339; shown by Lamina, which keeps that time apart from the labels."""
GC_REF_CONTENT = "containerd.io/gc.ref.content"
GC_REF_SNAPSHOT = "containerd.io/gc.ref.snapshot"
UNCOMPRESSED = "containerd.io/uncompressed"
"""On a compressed layer blob: the digest of its uncompressed tar stream."""
DISTRIBUTION_SOURCE = "containerd.io/distribution.source"
"""`.HOST` is appended; the value lists the repositories there that have the blob."""

INHERITED_PREFIX = "containerd.io/snapshot/"
MAX_LABEL_BYTES = 4096


def inherited(labels: Mapping[str, str]) -> dict[str, str]:
    """Return those labels that a daemon passes on to the snapshotter itself."""
    return {k: v for k, v in labels.items() if k.startswith(INHERITED_PREFIX) or k == SNAPSHOT_REF}


def validate(labels: Mapping[str, str]) -> None:
    """Check that no label is larger than containerd takes.

    Raises:
        InvalidArgument: key and value together exceed 4096 bytes.
    """
    for key, value in labels.items():
        if len(key.encode()) + len(value.encode()) > MAX_LABEL_BYTES:
            raise InvalidArgument(
                f"label exceeds {MAX_LABEL_BYTES} bytes of key and value", key[:64]
            )

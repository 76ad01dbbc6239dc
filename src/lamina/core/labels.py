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
FORK_OF = "containerd.io/snapshot/lamina.fork-of"
"""Given to prepare: make a fork of the Active snapshot of that key; never stored by Lamina."""
FORKED_FROM = "containerd.io/snapshot/lamina.forked-from"
"""On a fork: the key that its source had when it was made."""
IMAGE_REF = "containerd.io/snapshot/cri.image-ref"
"""On an extraction snapshot: the image that its layer is of, so that it can be asked for it."""
MANIFEST_DIGEST = "containerd.io/snapshot/cri.manifest-digest"
LAYER_DIGEST = "containerd.io/snapshot/cri.layer-digest"
"""On an extraction snapshot: the blob of its layer."""
IMAGE_LAYERS = "containerd.io/snapshot/cri.image-layers"
"""On an extraction snapshot: the blobs of its layer and those above, separated by commas."""
LAYER_SIZE = "containerd.io/snapshot/lamina.layer-size"
"""On an extraction snapshot: bytes of LAYER_DIGEST, as a decimal string (Lamina's own label)."""
UNPACKED = "containerd.io/snapshot/lamina.unpacked"
"""Shown on a layer that could be lazy, and is not: why; never stored."""
PLAIN_HTTP = "lamina.plain-http"
"""On an extraction snapshot: `true` if its registry is asked without TLS (Lamina's own label).

Without INHERITED_PREFIX: containerd would pass it on from an image, to which it is not to listen.
"""
REMOTE = "containerd.io/snapshot/remote"
"""`remote snapshot`: on a Committed snapshot whose content is served from elsewhere."""
GC_ROOT = "containerd.io/gc.root"
GC_EXPIRE = "containerd.io/gc.expire"
"""When a lease ends, RFC 3339; shown by Lamina, which keeps that time apart from the labels."""
GC_REF_CONTENT = "containerd.io/gc.ref.content"
GC_REF_SNAPSHOT = "containerd.io/gc.ref.snapshot"
UNCOMPRESSED = "containerd.io/uncompressed"
"""On a compressed layer blob: the digest of its uncompressed tar stream."""
DISTRIBUTION_SOURCE = "containerd.io/distribution.source"
"""`.HOST` is appended; the value lists the repositories there that have the blob."""

NOT_FORKED_PREFIX = "containerd.io/gc."
NOT_FORKED = frozenset(
    {SNAPSHOT_REF, DIFF_ID, PARENT_CHAIN_ID, OVERLAY_UPPERDIR, FORK_OF, FORKED_FROM}
)
"""Labels, beside those with the prefix, that are about one snapshot and not about its content."""
INHERITED_PREFIX = "containerd.io/snapshot/"
NOT_INHERITED = frozenset(
    {
        IMAGE_REF,
        MANIFEST_DIGEST,
        LAYER_DIGEST,
        IMAGE_LAYERS,
        LAYER_SIZE,
        FORK_OF,
        FORKED_FROM,
    }
)
"""Labels that an image may not give its layers: where they come from, and what they fork.

Nor those that start with REMOTE, which say the same to remote snapshotters.
"""
MAX_LABEL_BYTES = 4096


def inherited(labels: Mapping[str, str]) -> dict[str, str]:
    """Return those annotations of a layer that become labels of its snapshot."""
    return {
        key: value
        for key, value in labels.items()
        if (key.startswith(INHERITED_PREFIX) or key == SNAPSHOT_REF)
        and key not in NOT_INHERITED
        and not key.startswith(REMOTE)
    }


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

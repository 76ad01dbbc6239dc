"""Annotations of a layer in its manifest by which overlaybd images are known.

Where a layer is unpacked, they are labels of its snapshot. Source:
containerd/accelerated-container-image, `pkg/label/label.go`.
"""

from __future__ import annotations

PREFIX = "containerd.io/snapshot/overlaybd/"
"""What all of these begin with; they are about one blob, and untrue of another."""

BLOB_DIGEST = PREFIX + "blob-digest"
"""Of the blob; every layer of an overlaybd image has it."""
BLOB_SIZE = PREFIX + "blob-size"
"""Of the blob: bytes, in decimal."""
FS_TYPE = PREFIX + "blob-fs-type"
"""`ext4`, or `TYPE;MOUNT-OPTIONS;MKFS-OPTIONS`; that of the uppermost layer counts."""
VERSION = PREFIX + "version"
NATIVE_VERSION = "0.1.0"
"""Of a layer that has its data; those of TurboOCI have `-turbo.ociv1` or `-fastoci` behind it."""
ACCELERATION = PREFIX + "acceleration-layer"
"""`yes` for an uppermost layer that says what to prefetch, and has nothing of the device."""
TARGET_DIGEST = PREFIX + "turbo-oci/target-digest"
"""Of the layer that has the data of a TurboOCI layer."""
OLD_TARGET_DIGEST = PREFIX + "fastoci/target-digest"
TARGET_MEDIA_TYPE = PREFIX + "turbo-oci/target-media-type"
OLD_TARGET_MEDIA_TYPE = PREFIX + "fastoci/target-media-type"

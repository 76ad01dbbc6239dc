"""What the labels of an overlaybd layer's snapshot say of it: its annotations, and where it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from lamina.core.digest import Digest, parse_digest
from lamina.core.labels import PLAIN_HTTP
from lamina.errors import InvalidArgument
from lamina.formats.overlaybd.annotations import (
    ACCELERATION,
    BLOB_DIGEST,
    BLOB_SIZE,
    FS_TYPE,
    OLD_TARGET_DIGEST,
    OLD_TARGET_MEDIA_TYPE,
    PREFIX,
    TARGET_DIGEST,
    TARGET_MEDIA_TYPE,
)
from lamina.snapshotters.lazy_labels import reference_in

_TARGET_DIGESTS = (TARGET_DIGEST, OLD_TARGET_DIGEST)
_TARGET_TYPES = (TARGET_MEDIA_TYPE, OLD_TARGET_MEDIA_TYPE)
_IMAGE_REF = "containerd.io/snapshot/image-ref"
"""As the `ctr` of accelerated-container-image sets it."""
WRITABLE = "containerd.io/snapshot/overlaybd.writable"
"""On a new snapshot: `dir` or `dev`, so that what it changes is blocks of the device."""
VSIZE = PREFIX + "vsize"
"""On a new snapshot with nothing below: GiB of its device."""
COMMIT_PATH = "containerd.io/snapshot/overlaybd.localcommitpath"
"""Shown on a layer that is here whole: its file."""
DEFAULT_FS = "ext4"

Mode = Literal["dir", "dev"]
"""How a device that is written to is given: mounted on a directory, or as it is."""


class Blob(NamedTuple):
    """A blob in a registry.

    Attributes:
        reference: of the image, with its registry's host; "" where no label tells.
        digest: the blob's.
        size: in bytes; 0 where no label tells.
        plain_http: its registry was asked without TLS.
    """

    reference: str
    digest: Digest
    size: int
    plain_http: bool


def blob_in(labels: Mapping[str, str]) -> Blob | None:
    """Return where an overlaybd layer is; None for a layer of another kind.

    Raises:
        InvalidArgument: a digest or size is none.
    """
    digest = labels.get(BLOB_DIGEST, "")
    if not digest or target_in(labels) is not None:
        return None
    size = labels.get(BLOB_SIZE, "0")
    if not size.isdecimal():
        raise InvalidArgument(f"label {BLOB_SIZE}", size, hint="a number of bytes is needed")
    return _blob(labels, digest, int(size))


def target_in(labels: Mapping[str, str]) -> Blob | None:
    """Return the original layer that a TurboOCI layer has its data in; None for other layers.

    Raises:
        InvalidArgument: the digest is none.
    """
    digest = _first(labels, _TARGET_DIGESTS)
    return _blob(labels, digest, 0) if digest else None


def is_gzip_target(labels: Mapping[str, str]) -> bool:
    """Tell whether that layer is compressed."""
    return "gzip" in _first(labels, _TARGET_TYPES)


def is_acceleration(labels: Mapping[str, str]) -> bool:
    """Tell whether a layer has only a trace."""
    return labels.get(ACCELERATION) == "yes"


def filesystem_in(labels: Mapping[str, str]) -> str:
    """Return the type of the filesystem on the device.

    The label may go on with options for mounting and making it, which are for writers.
    """
    return labels.get(FS_TYPE, "").partition(";")[0] or DEFAULT_FS


def mode_in(labels: Mapping[str, str]) -> Mode | None:
    """Return how a new snapshot is to be written to; None where no label says.

    Raises:
        InvalidArgument: it says something else.
    """
    match labels.get(WRITABLE):
        case None:
            return None
        case "dir" | "dev" as mode:
            return mode
        case other:
            raise InvalidArgument(f"label {WRITABLE}", other, hint="it has to be dir, or dev")


def _blob(labels: Mapping[str, str], digest: str, size: int) -> Blob:
    reference = labels.get(_IMAGE_REF) or reference_in(labels)
    return Blob(reference, parse_digest(digest), size, labels.get(PLAIN_HTTP) == "true")


def _first(labels: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((labels[name] for name in names if labels.get(name)), "")

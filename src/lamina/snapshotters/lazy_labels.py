"""Which blob of which image a layer is, by the labels that whoever pulls puts on its snapshot."""

from __future__ import annotations

from collections.abc import Mapping

from lamina.core.digest import Digest, parse_digest
from lamina.core.labels import IMAGE_REF, LAYER_DIGEST, LAYER_SIZE
from lamina.errors import InvalidArgument

_REFERENCES = (IMAGE_REF, "containerd.io/snapshot/remote/stargz.reference")
_DIGESTS = (LAYER_DIGEST, "containerd.io/snapshot/remote/stargz.digest")
"""As CRI has them, and `ctr-remote images rpull`."""


def reference_in(labels: Mapping[str, str]) -> str:
    """Return the image's reference, with its registry's host; "" where no label tells."""
    return _first(labels, _REFERENCES)


def digest_in(labels: Mapping[str, str]) -> Digest | None:
    """Return the digest of the layer's blob; None where no label tells.

    Raises:
        InvalidArgument: it is none.
    """
    digest = _first(labels, _DIGESTS)
    return parse_digest(digest) if digest else None


def size_in(labels: Mapping[str, str]) -> int:
    """Return the size of the layer's blob in bytes; 0 where no label tells.

    Raises:
        InvalidArgument: it is none.
    """
    size = labels.get(LAYER_SIZE, "0")
    if not size.isdecimal():
        raise InvalidArgument(f"label {LAYER_SIZE}", size, hint="a number of bytes is needed")
    return int(size)


def _first(labels: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((labels[name] for name in names if labels.get(name)), "")

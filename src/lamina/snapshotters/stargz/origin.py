"""Which blob of which image a layer is, as the labels of its extraction snapshot say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from lamina.core.digest import Digest, parse_digest
from lamina.core.labels import IMAGE_REF, LAYER_DIGEST, LAYER_SIZE, MANIFEST_DIGEST, PLAIN_HTTP
from lamina.errors import InvalidArgument
from lamina.formats.estargz.annotations import TOC_DIGEST

SKIP_VERIFY = "containerd.io/snapshot/remote/stargz.skipverify"
_REFERENCES = (IMAGE_REF, "containerd.io/snapshot/remote/stargz.reference")
_DIGESTS = (LAYER_DIGEST, "containerd.io/snapshot/remote/stargz.digest")


class Verification(NamedTuple):
    """What the configuration lets pass.

    Attributes:
        off: nothing is verified.
        may_be_skipped: for layers whose labels ask for it.
    """

    off: bool = False
    may_be_skipped: bool = False


class Origin(NamedTuple):
    """Where a layer comes from.

    Attributes:
        reference: the image's, with its registry's host.
        digest: of the blob.
        manifest: digest of the manifest that names the blob; "" where no label tells.
        size: of the blob in bytes; 0 where no label tells.
        toc_digest: what its table of contents has to have; "" where no label tells.
        may_skip: whoever unpacks it does not insist on verification.
        plain_http: its registry was asked without TLS.
    """

    reference: str
    digest: Digest
    manifest: str
    size: int
    toc_digest: str
    may_skip: bool
    plain_http: bool


def origin_of(labels: Mapping[str, str]) -> Origin | None:
    """Return what the labels say; None where they do not name image and blob.

    Raises:
        InvalidArgument: a digest or size is none.
    """
    reference, digest = _first(labels, _REFERENCES), _first(labels, _DIGESTS)
    if not reference or not digest:
        return None
    size = labels.get(LAYER_SIZE, "0")
    if not size.isdecimal():
        raise InvalidArgument(f"label {LAYER_SIZE}", size, hint="a number of bytes is needed")
    return Origin(
        reference,
        parse_digest(digest),
        labels.get(MANIFEST_DIGEST, ""),
        int(size),
        labels.get(TOC_DIGEST, ""),
        SKIP_VERIFY in labels,
        labels.get(PLAIN_HTTP) == "true",
    )


def _first(labels: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((labels[name] for name in names if labels.get(name)), "")

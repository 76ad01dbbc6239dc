"""Which blob of which image a layer is, as the labels of its extraction snapshot say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from lamina.core.digest import Digest
from lamina.core.labels import MANIFEST_DIGEST, PLAIN_HTTP
from lamina.formats.estargz.annotations import TOC_DIGEST
from lamina.snapshotters.lazy_labels import digest_in, reference_in, size_in

SKIP_VERIFY = "containerd.io/snapshot/remote/stargz.skipverify"


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
    reference, digest = reference_in(labels), digest_in(labels)
    if not reference or digest is None:
        return None
    return Origin(
        reference,
        digest,
        labels.get(MANIFEST_DIGEST, ""),
        size_in(labels),
        labels.get(TOC_DIGEST, ""),
        SKIP_VERIFY in labels,
        labels.get(PLAIN_HTTP) == "true",
    )

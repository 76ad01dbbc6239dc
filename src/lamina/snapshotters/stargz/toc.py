"""The table of contents of a layer: in which blob it is, and what says that it is the right one."""

from __future__ import annotations

import dataclasses
import io
from typing import TYPE_CHECKING

from lamina.core.digest import Digest, parse_digest, sha256
from lamina.core.source import RangeSource
from lamina.errors import DigestMismatch, FailedPrecondition, NotFound
from lamina.formats.estargz.annotations import CHUNKED_DIGESTS
from lamina.formats.estargz.footer import Kind, TocLocation, find_toc
from lamina.formats.estargz.toc import MAX_COMPRESSED, Toc, read_external_toc, read_toc
from lamina.images.manifest import Descriptor
from lamina.images.reference import Reference, parse
from lamina.snapshotters.lazy_access import Access
from lamina.snapshotters.lazy_blobs import manifest_layers, registry
from lamina.snapshotters.stargz.origin import Origin, Verification

if TYPE_CHECKING:
    from collections.abc import Callable

EXTERNAL_SUFFIX = "-esgztoc"
"""Of the tag of the image that has the tables of contents of another's layers."""
LAYER_OF_TOC = "containerd.io/snapshot/stargz/layer.digest"
"""Annotation of a layer in such an image: the blob that the table in it is of."""


def read_layer_toc(
    access: Access, origin: Origin, source: RangeSource, verification: Verification
) -> tuple[Toc, bool]:
    """Read a layer's table of contents; tell whether its chunks have to be verified as well.

    Raises:
        FormatError: the blob has none, or one that breaks a rule.
        DigestMismatch: it is not the one that the manifest names.
        FailedPrecondition: the manifest names none, and the configuration insists; or it is in
            another image, which only a tag leads to.
        LaminaError: as the registry raises.
    """
    location = find_toc(source)
    if location.kind is Kind.EXTERNAL:
        toc = _external(access, origin, location)
    else:
        toc = read_toc(source, location)
    if verification.off:
        return toc, False
    if origin.toc_digest:
        _check(origin, origin.toc_digest, toc.digest)
    elif packed := _packed_digest(access, origin, toc):
        _check(origin, packed, toc.packed_digest)
    elif verification.may_be_skipped and origin.may_skip:
        return toc, False
    else:
        hint = "the manifest names no TOC digest: convert the image as an OCI image (--oci)"
        raise FailedPrecondition("verify the TOC of layer", origin.digest, hint=hint)
    return toc, not (verification.may_be_skipped and origin.may_skip)


def _external(access: Access, origin: Origin, location: TocLocation) -> Toc:
    """Read a table of contents from the image that has those of all layers."""
    ref = _toc_image(origin)
    layer = _find(access, ref, lambda layer: layer.annotations.get(LAYER_OF_TOC) == origin.digest)
    if layer is None:
        raise NotFound(f"find in image {ref} the TOC of layer", origin.digest)
    if layer.size > MAX_COMPRESSED:
        hint = f"at most {MAX_COMPRESSED} bytes are read"
        raise FailedPrecondition(f"read a TOC of {layer.size} bytes", layer.digest, hint=hint)
    data = registry(access).source(ref, layer).read_at(0, layer.size)
    got = sha256(data)
    if got != layer.digest:
        raise DigestMismatch(
            f"read TOC from {ref} of layer", origin.digest, expected=layer.digest, got=got
        )
    return read_external_toc(io.BytesIO(data).read, location)


def _toc_image(origin: Origin) -> Reference:
    ref = parse(origin.reference)
    if not ref.tag:
        hint = f"it is in the image whose tag ends with {EXTERNAL_SUFFIX}: pull by tag"
        raise FailedPrecondition("find the external TOC of layer", origin.digest, hint=hint)
    return dataclasses.replace(ref, tag=ref.tag + EXTERNAL_SUFFIX, digest=None)


def _packed_digest(access: Access, origin: Origin, toc: Toc) -> Digest | None:
    """Return what the manifest says of a zstd:chunked layer as Podman makes it."""
    if not toc.packed_digest or not origin.manifest:
        return None
    ref = parse(origin.reference).with_digest(parse_digest(origin.manifest))
    layer = _find(access, ref, lambda layer: layer.digest == origin.digest)
    said = layer.annotations if layer else {}
    return next((parse_digest(said[name]) for name in CHUNKED_DIGESTS if name in said), None)


def _find(
    access: Access, ref: Reference, matches: Callable[[Descriptor], bool]
) -> Descriptor | None:
    """Return the layer of an image that matches, if one does; none of an index."""
    return next(filter(matches, manifest_layers(access, ref)), None)


def _check(origin: Origin, expected: str, got: str | None) -> None:
    if got != expected:
        raise DigestMismatch("check TOC of layer", origin.digest, expected=expected, got=str(got))

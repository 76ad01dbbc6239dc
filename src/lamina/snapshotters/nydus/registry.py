"""The blobs of an image in their registry: where each is, and how long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from lamina.core.digest import Digest, parse_digest
from lamina.core.source import RangeSource
from lamina.errors import DataLoss, NotFound
from lamina.images.reference import parse
from lamina.lazy.sources.description import RegistryDescription
from lamina.snapshotters.lazy_access import Access
from lamina.snapshotters.lazy_blobs import (
    login_hint,
    manifest_layers,
    open_source,
    size_in_registry,
)
from lamina.snapshotters.nydus.origin import Origin

_AT_ONCE = 8
"""Blobs that are asked for at a time."""


class ImageRegistry:
    """The registry of one image.

    Args:
        access: how to reach it.
        origin: of the layer with the bootstrap.
        blobs: of the layers that are blobs.
    """

    def __init__(self, access: Access, origin: Origin, blobs: Sequence[Origin]) -> None:
        self._access = access
        self._origin = origin
        self._sizes = {blob.digest: blob.size for blob in blobs if blob.size}
        self._has_manifest = False

    def description(self, id: str, size: int = 0) -> RegistryDescription:
        """Say where a blob is.

        Args:
            id: the hexadecimal digits of its SHA-256.
            size: its bytes if they are known, else 0; a manifest counts more.

        Raises:
            InvalidArgument: that is no digest, so that no registry has it.
            LaminaError: the registry does not say how long it is.
        """
        digest = parse_digest(f"sha256:{id}")
        with login_hint(), self._access.patience():
            known = self._size(digest) or size
            length = known or size_in_registry(self._access, self._origin.reference, digest)
        return RegistryDescription(self._origin.reference, digest, length)

    def open(self, id: str, size: int = 0) -> RangeSource:
        """Return the bytes of a blob; as `description`."""
        return _Patient(open_source(self._access, self.description(id, size)), self._access)

    def require(self, blobs: Iterable[RegistryDescription]) -> None:
        """Ask the registry whether it gives blobs, before anybody has to wait for what is in them.

        Raises:
            NotFound: it does not have one.
            DataLoss: one is not as long as its description says.
            LaminaError: it cannot be asked.
        """
        sizes = {Digest(blob.digest): blob.size for blob in blobs}
        with ThreadPoolExecutor(_AT_ONCE, "lamina-blobs") as executor:
            for digest, found in zip(sizes, executor.map(self._asked, sizes), strict=True):
                if found != sizes[digest]:
                    text = f"it has {found} bytes in its registry, and {sizes[digest]} in its image"
                    hint = "push the image anew, and pull it again"
                    raise DataLoss(f"serve a Nydus blob: {text}:", digest, hint=hint)

    def _size(self, digest: str) -> int:
        if digest not in self._sizes and self._origin.manifest and not self._has_manifest:
            self._has_manifest = True
            self._sizes |= self._sizes_in_manifest()
        return self._sizes.get(digest, 0)

    def _sizes_in_manifest(self) -> dict[str, int]:
        manifest = parse_digest(self._origin.manifest)
        reference = parse(self._origin.reference).with_digest(manifest)
        try:
            layers = manifest_layers(self._access, reference)
        except NotFound:
            return {}  # a blob says itself how long it is
        return {layer.digest: layer.size for layer in layers}

    def _asked(self, digest: str) -> int:
        try:
            with login_hint(), self._access.patience():
                return size_in_registry(self._access, self._origin.reference, parse_digest(digest))
        except NotFound as error:
            error.hint = "push all blobs of the image to its repository, and pull it again"
            raise


class _Patient:
    """A source whose reads take no longer than those of the image would."""

    def __init__(self, source: RangeSource, access: Access) -> None:
        self._source = source
        self._access = access
        self.size = source.size

    def read_at(self, offset: int, length: int) -> bytes:
        """As the source reads."""
        with self._access.patience():
            return self._source.read_at(offset, length)

"""Layers that are converted, as their tars."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lamina.core.digest import Digest
from lamina.errors import DigestMismatch, NotFound, ResourceExhausted
from lamina.formats.compression import Read, decompress
from lamina.formats.estargz.annotations import PREFIXES as LAZY_PREFIXES
from lamina.formats.estargz.writer.members import RESERVED
from lamina.images.content import ContentStore
from lamina.images.download import event
from lamina.images.manifest import Descriptor
from lamina.images.progress import Progress, Stage
from lamina.images.registry.cancel import Cancel
from lamina.layer.blob import is_sniffed
from lamina.layer.limits import LayerLimits

Unpack = Callable[[Read], Iterator[bytes]]
"""Yields what is compressed in the bytes that a function reads."""


class SourceLayers:
    """Layers of the content store.

    Args:
        content: has them.
        limits: bounds of each; `limits` afterwards too.
        progress: told what happens.
        cancel: stops it from another thread.
    """

    def __init__(
        self, content: ContentStore, *, limits: LayerLimits, progress: Progress, cancel: Cancel
    ) -> None:
        self.limits = limits
        self._content = content
        self._progress = progress
        self._cancel = cancel

    @contextmanager
    def tar(
        self, layer: Descriptor, diff_id: Digest, unpack: Unpack | None = None
    ) -> Iterator[Iterator[bytes]]:
        """Open a layer for the body: yield its tar, which is compared at its end.

        Args:
            layer: in the store.
            diff_id: digest of the tar.
            unpack: decompresses it; None for whatever it is.

        Raises:
            NotFound: its blob is not in the store.
            DigestMismatch: it is not what its image's configuration says.
            FormatError, ResourceExhausted: it is damaged, or more than the limits allow.
        """
        try:
            file = self._content.open(layer.digest)
        except NotFound as error:
            raise missing_layer(layer) from error
        with file:
            if unpack is not None:
                yield self._chunks(unpack(file.read), layer, diff_id)
                return
            yield self._chunks(
                decompress(file.read, sniff=is_sniffed(layer.media_type)), layer, diff_id
            )

    def tell(self, layer: Descriptor, stage: Stage, done: int = 0) -> None:
        """Tell how far a layer is, in bytes of its blob.

        Raises:
            Cancelled: told to stop.
        """
        self._cancel.check("convert", layer.digest)
        self._progress.update(event(layer, stage, done))

    def _chunks(
        self, chunks: Iterator[bytes], layer: Descriptor, diff_id: Digest
    ) -> Iterator[bytes]:
        hashed = hashlib.new(diff_id.partition(":")[0])
        size = 0
        for chunk in chunks:
            self._cancel.check("convert", layer.digest)
            size += len(chunk)
            if size > self.limits.max_bytes:
                much = f"it has more than {self.limits.max_bytes} bytes uncompressed"
                raise ResourceExhausted("convert", layer.digest, hint=much)
            hashed.update(chunk)
            yield chunk
        got = f"{diff_id.partition(':')[0]}:{hashed.hexdigest()}"
        if got != diff_id:
            raise DigestMismatch("convert", layer.digest, expected=diff_id, got=got)


def left_out(layer: Descriptor) -> frozenset[bytes]:
    """Return names in the root that are there for readers of a lazy layer."""
    is_lazy = any(name.startswith(LAZY_PREFIXES) for name in layer.annotations)
    return RESERVED if is_lazy else frozenset()


def missing_layer(layer: Descriptor) -> NotFound:
    """Return the error for a layer whose blob is not in the store."""
    hint = "fetch it: lamina images pull --no-unpack REF, with --all-platforms for those of others"
    return NotFound("blob of a layer", layer.digest, hint=hint)

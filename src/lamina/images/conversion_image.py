"""What images become whose layers are not converted one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from lamina.core.digest import Digest
from lamina.errors import InvalidArgument
from lamina.images.manifest import Descriptor, is_foreign
from lamina.images.nydus import bootstrap_layer
from lamina.images.overlaybd import is_overlaybd
from lamina.images.tree import PlatformImage

Wanted = Callable[[Digest], Sequence[bytes] | None]
"""Returns the files of a layer of the source that are wanted first; None where nothing is said."""


@dataclass(frozen=True, slots=True)
class MadeImage:
    """An image's layers now, their diff ids, and what its configuration says of their history.

    That is None for one that stays as it is.
    """

    layers: tuple[Descriptor, ...]
    diff_ids: tuple[Digest, ...]
    history: list[dict[str, object]] | None


class ImageConverter(Protocol):
    """Converts images whole."""

    def convert(self, image: PlatformImage, prioritized: Wanted) -> MadeImage:
        """Convert an image whose layers are in the store.

        Raises:
            InvalidArgument: it cannot be what it is to become.
            NotFound: a layer's blob is not in the store.
            DigestMismatch: a layer is not what its image's configuration says.
            FormatError, ResourceExhausted: a layer is damaged, or there is no room.
        """
        ...


def require_files(image: PlatformImage, kind: str) -> None:
    """Refuse an image that is one of `kind`, Nydus or overlaybd, or whose layers have no files.

    Raises:
        InvalidArgument: it is such.
    """
    found = _kind(image)
    if not found:
        return
    said = "it is one already" if found == kind else f"it is {_article(found)} image"
    hint = f"{said}: convert the image that it was made of"
    raise InvalidArgument(f"convert to {_article(kind)} image", image.descriptor.digest, hint=hint)


def require_distributable(image: PlatformImage, kind: str) -> None:
    """Refuse an image with a layer that must not be distributed: its files would be.

    Raises:
        InvalidArgument: it has one.
    """
    for layer in image.manifest.layers:
        if is_foreign(layer.media_type):
            hint = f"layer {layer.digest} must not be distributed, and its files would be"
            what = f"convert to {_article(kind)} image"
            raise InvalidArgument(what, image.descriptor.digest, hint=hint)


def _kind(image: PlatformImage) -> str:
    if bootstrap_layer(image.manifest) is not None:
        return "Nydus"
    return "overlaybd" if is_overlaybd(image.manifest) else ""


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"

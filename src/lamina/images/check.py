"""Whether an image is whole: which of its content is here, for one platform."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lamina.core.digest import Digest
from lamina.errors import LaminaError
from lamina.images.manifest import Descriptor, Manifest
from lamina.images.platform import default_platform
from lamina.images.tree import Reader, images, read_document, read_image, select


@dataclass(frozen=True, slots=True)
class Availability:
    """What of an image is here.

    Attributes:
        found: its manifest is here; if it is not, nothing below is known.
        required: configuration and layers.
        missing: those of them that are not here.
        chain_id: name of the top layer's snapshot; None where the configuration is not here.
    """

    found: bool = False
    required: tuple[Descriptor, ...] = ()
    missing: tuple[Descriptor, ...] = ()
    chain_id: Digest | None = None

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return self.found and not self.missing

    @property
    def status(self) -> str:
        """Return ctr's words: `complete (4/4)`, `incomplete (2/4)`, `unavailable (0/?)`."""
        if not self.found:
            return "unavailable (0/?)"
        word = "incomplete" if self.missing else "complete"
        present = len(self.required) - len(self.missing)
        return f"{word} ({present}/{len(self.required)})"

    @property
    def size(self) -> int:
        """Bytes of all that is required."""
        return sum(descriptor.size for descriptor in self.required)

    @property
    def present_size(self) -> int:
        """Bytes of what is here of it."""
        return self.size - sum(descriptor.size for descriptor in self.missing)


def available(target: Descriptor, read: Reader, has: Callable[[Digest], bool]) -> Availability:
    """Look which content of an image is here.

    It is that for this machine's platform, or else for the first platform whose manifest is here.

    Args:
        target: of the image's record.
        read: of local content.
        has: tells whether a blob is there.
    """
    found = manifest_here(target, read)
    if found is None:
        return Availability()
    descriptor, manifest = found
    required = (manifest.config, *manifest.layers)
    missing = tuple(blob for blob in required if not has(blob.digest))
    try:
        chain_id = read_image(descriptor, read).chain_id
    except LaminaError:
        chain_id = None
    return Availability(True, required, missing, chain_id)


def manifest_here(target: Descriptor, read: Reader) -> tuple[Descriptor, Manifest] | None:
    """Return the manifest that `available` looks at; None where none is here."""
    try:
        image = select(target, default_platform(), read)
        return image.descriptor, image.manifest
    except LaminaError:
        pass  # not for this platform, or something is missing
    try:
        members = list(images(target, read))
    except LaminaError:
        return None
    for member in members:
        try:
            document = read_document(member, read)
        except LaminaError:
            continue
        if isinstance(document, Manifest):
            return member, document
    return None

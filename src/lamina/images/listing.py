"""What a list of images tells of each: its size, and the platforms it is for."""

from __future__ import annotations

from dataclasses import dataclass

from lamina.errors import LaminaError, NotFound
from lamina.images.manifest import Descriptor, Manifest
from lamina.images.platform import default_platform, format_platform, normalize
from lamina.images.tree import Reader, images, read_document, read_image, select


@dataclass(frozen=True, slots=True)
class Listing:
    """Facts about one image, from local content only.

    Attributes:
        size: bytes of manifest, configuration and compressed layers for this machine's platform,
            or else for the first platform whose manifest is here.
        platforms: `os/arch[/variant]` of every image whose content is complete enough to tell.
    """

    size: int = 0
    platforms: tuple[str, ...] = ()


def describe(target: Descriptor, read: Reader) -> Listing:
    """Return what local content tells of an image; absent content leaves things out."""
    try:
        members = list(images(target, read))
    except LaminaError:
        return Listing()
    platforms = {platform for member in members if (platform := _platform(member, read))}
    return Listing(_size(target, members, read), tuple(sorted(platforms)))


def _platform(member: Descriptor, read: Reader) -> str:
    if member.platform is not None:
        return format_platform(normalize(member.platform))
    try:
        return format_platform(normalize(read_image(member, read).config.platform))
    except LaminaError:
        return ""


def _size(target: Descriptor, members: list[Descriptor], read: Reader) -> int:
    try:
        image = select(target, default_platform(), read)
        return _total(image.descriptor, image.manifest)
    except LaminaError:
        pass
    for member in members:
        try:
            document = read_document(member, read)
        except NotFound:
            continue
        if isinstance(document, Manifest):
            return _total(member, document)
    return 0


def _total(descriptor: Descriptor, manifest: Manifest) -> int:
    return descriptor.size + manifest.config.size + sum(layer.size for layer in manifest.layers)

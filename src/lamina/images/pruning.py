"""Letting go of what is kept beside what runs: unused images, and layers that are unpacked."""

from __future__ import annotations

from collections.abc import Iterable

from lamina.core.labels import GC_REF_CONTENT
from lamina.errors import InvalidArgument
from lamina.images.catalogue import Image
from lamina.images.reference import parse
from lamina.images.store import ImageStore

LAYER_PREFIX = f"{GC_REF_CONTENT}.l."
"""Begins the labels by which a manifest keeps its layers."""


def unused_images(store: ImageStore, in_use: Iterable[str]) -> list[Image]:
    """Return the images that none of the references in use, full or short, means."""
    used = {name for ref in in_use for name in _names(ref)}
    return [image for image in store.catalogue.walk() if image.name not in used]


def drop_layer_references(store: ImageStore, *, dry: bool = False) -> list[str]:
    """Let every manifest give up its layers, so that the next collection takes their blobs.

    What is unpacked stays and runs; to unpack it elsewhere, or to export it, it has to be pulled
    again.

    Args:
        store: whose content it is about.
        dry: change nothing.

    Returns:
        The digests of the layers that were, or would be, given up.
    """
    dropped: list[str] = []
    for info in store.content.walk():
        labels = {key: value for key, value in info.labels.items() if key.startswith(LAYER_PREFIX)}
        dropped += labels.values()
        if labels and not dry:
            store.content.label(info.digest, dict.fromkeys(labels, ""))
    return sorted(set(dropped))


def _names(ref: str) -> list[str]:
    try:
        return [ref, str(parse(ref))]
    except InvalidArgument:
        return [ref]

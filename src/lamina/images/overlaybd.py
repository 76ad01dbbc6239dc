"""overlaybd images in the content store: which layer is what."""

from __future__ import annotations

from lamina.formats.overlaybd.annotations import (
    ACCELERATION,
    BLOB_DIGEST,
    OLD_TARGET_DIGEST,
    TARGET_DIGEST,
)
from lamina.images.manifest import Descriptor, Manifest


def is_overlaybd(manifest: Manifest) -> bool:
    """Tell whether an image has a layer of overlaybd's, one of TurboOCI among them."""
    return any(BLOB_DIGEST in layer.annotations for layer in manifest.layers)


def is_acceleration(layer: Descriptor) -> bool:
    """Tell whether a layer only says what to prefetch."""
    return layer.annotations.get(ACCELERATION) == "yes"


def is_turbo(layer: Descriptor) -> bool:
    """Tell whether a layer of overlaybd's leaves its data in the layer of another image."""
    return bool(layer.annotations.keys() & {TARGET_DIGEST, OLD_TARGET_DIGEST})


def device_layers(manifest: Manifest) -> list[Descriptor]:
    """Return the layers that make up the device, the lowest first; others may lie above."""
    return [
        layer
        for layer in manifest.layers
        if BLOB_DIGEST in layer.annotations and not is_acceleration(layer)
    ]

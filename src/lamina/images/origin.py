"""Labels that tell a snapshotter which blob of which image a layer is, as CRI and nerdctl set them.

One that serves layers from their registry (`core.driver.Remote`) finds them by these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lamina.core.labels import (
    IMAGE_LAYERS,
    IMAGE_REF,
    LAYER_DIGEST,
    LAYER_SIZE,
    MANIFEST_DIGEST,
    MAX_LABEL_BYTES,
    PLAIN_HTTP,
)
from lamina.images.manifest import Descriptor


class ImageOrigin(NamedTuple):
    """Where an image comes from.

    Attributes:
        reference: with its registry's host.
        plain_http: the registry was asked without TLS.
    """

    reference: str
    plain_http: bool = False


def origin_labels(
    origin: ImageOrigin, manifest: Descriptor, layers: Sequence[Descriptor]
) -> list[dict[str, str]]:
    """Return the labels of each layer.

    Args:
        origin: the image's.
        manifest: the one that names the layers.
        layers: all of them, base first.
    """
    access = {PLAIN_HTTP: "true"} if origin.plain_http else {}
    return [
        {
            **access,
            IMAGE_REF: origin.reference,
            MANIFEST_DIGEST: manifest.digest,
            LAYER_DIGEST: layer.digest,
            LAYER_SIZE: str(layer.size),
            IMAGE_LAYERS: _listed([each.digest for each in layers[position:]]),
        }
        for position, layer in enumerate(layers)
    ]


def _listed(digests: Sequence[str]) -> str:
    """Return as many of the digests as a label holds; those above are found by their own label."""
    room = MAX_LABEL_BYTES - len(IMAGE_LAYERS)
    count = min(len(digests), (room + 1) // (len(max(digests, key=len)) + 1))
    return ",".join(digests[:count])

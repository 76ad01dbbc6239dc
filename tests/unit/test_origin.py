"""Labels that say where a layer comes from."""

from __future__ import annotations

from lamina.core.digest import Digest
from lamina.core.labels import (
    FORK_OF,
    IMAGE_LAYERS,
    IMAGE_REF,
    LAYER_DIGEST,
    LAYER_SIZE,
    MAX_SIZE,
    PLAIN_HTTP,
    REMOTE,
    validate,
)
from lamina.images.extraction import Layer
from lamina.images.manifest import Descriptor
from lamina.images.origin import ImageOrigin, origin_labels
from tests.images import OCI_LAYER


def descriptors(count: int) -> list[Descriptor]:
    digests = [Digest(f"sha256:{number:064x}") for number in range(count)]
    return [Descriptor(OCI_LAYER, digest, 10 + i) for i, digest in enumerate(digests)]


def test_each_layer_and_those_above() -> None:
    layers = descriptors(3)
    found = origin_labels(ImageOrigin("example/app:1"), layers[0], layers)
    assert [labels[LAYER_DIGEST] for labels in found] == [layer.digest for layer in layers]
    assert [labels[LAYER_SIZE] for labels in found] == ["10", "11", "12"]
    assert found[1][IMAGE_LAYERS].split(",") == [layer.digest for layer in layers[1:]]


def test_list_is_no_longer_than_a_label() -> None:
    layers = descriptors(200)
    found = origin_labels(ImageOrigin("example/app:1"), layers[0], layers)
    for labels in found:
        validate(labels)
    longest = found[0][IMAGE_LAYERS]
    assert len(IMAGE_LAYERS) + len(longest) + len(f",{layers[0].digest}") > 4096
    assert longest.split(",") == [layer.digest for layer in layers[: longest.count(",") + 1]]


def test_image_cannot_say_where_its_layers_come_from() -> None:
    [blob] = descriptors(1)
    said = {IMAGE_REF: "elsewhere/app:1", PLAIN_HTTP: "true", REMOTE: "remote snapshot"}
    said |= {FORK_OF: "a", MAX_SIZE: "1", f"{REMOTE}/stargz.reference": "elsewhere/app:1"}
    annotated = Descriptor(OCI_LAYER, blob.digest, blob.size, annotations=said)
    layer = Layer(0, annotated, blob.digest, blob.digest, None)
    assert said.keys() & layer.labels.keys() == {MAX_SIZE}
    [layer.origin] = origin_labels(ImageOrigin("example/app:1"), blob, [blob])
    assert layer.labels[IMAGE_REF] == "example/app:1"

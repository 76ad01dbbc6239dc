"""Making an image lazy so that what its start reads comes first, and what that is good for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from lamina.errors import FailedPrecondition, InvalidArgument
from lamina.images.conversion import Converted, ConvertOptions, check, choose
from lamina.images.conversion_layers import ConvertedLayer
from lamina.images.platform import default_platform, format_platform
from lamina.images.progress import Progress
from lamina.images.recording_cost import LayerCost, costs
from lamina.images.recording_layers import Attributed
from lamina.images.tree import PlatformImage

if TYPE_CHECKING:
    from lamina.store import Store


class OptimizedLayer(NamedTuple):
    """A layer, and what the recorded files need of it.

    Attributes:
        converted: what became of it.
        before: what is needed of the source's blob.
        after: what is needed of the new one.
    """

    converted: ConvertedLayer
    before: LayerCost
    after: LayerCost


class Optimized(NamedTuple):
    """What `optimize_image` returns.

    Attributes:
        converted: the new image.
        layers: of the image for this machine's platform, base first, each once; empty for a Nydus
            or overlaybd image, whose layers are not those of the source.
    """

    converted: Converted
    layers: list[OptimizedLayer]


def check_optimization(store: Store, ref: str, target: str, options: ConvertOptions) -> None:
    """Check all that can be checked before a container is run for it.

    Raises:
        NotFound: there is no such image, or none for a platform.
        InvalidArgument: an option is out of range, the target's name has a digest, or the image for
            this machine's platform is not to be converted.
    """
    check(target, options)
    image = store.image(ref)
    running = store.images.select(image, default_platform()).descriptor.digest
    chosen = choose(store.images, image.target, options)
    if running not in {each.descriptor.digest for each in chosen}:
        hint = f"only that for {format_platform(default_platform())} can be run: choose it too"
        raise InvalidArgument("optimize image for other platforms", ref, hint=hint)


def optimize_image(
    store: Store,
    ref: str,
    target: str,
    source: PlatformImage,
    files: Attributed,
    options: ConvertOptions,
    *,
    progress: Progress | None = None,
    sync: bool = False,
) -> Optimized:
    """Convert an image so that the recorded files come first, and are prefetched.

    Layers without such files, and those for other platforms, say that nothing is to be prefetched.

    Args:
        store: has the image and all its blobs.
        ref: the image.
        target: name of the new image.
        source: what of the image was recorded.
        files: what the record names, in order of first use.
        options: how to convert it; `prioritized` does not count.
        progress: told what happens.
        sync: make it survive power loss before returning.

    Raises:
        FailedPrecondition: the name means another image than the recorded one by now.
        NotFound, FormatError, DigestMismatch, ResourceExhausted: as `Store.convert`.
    """
    platform = default_platform()
    now = store.images.select(store.image(ref), platform).descriptor.digest
    if now != source.descriptor.digest:
        raise FailedPrecondition("optimize image", ref, hint="it was replaced: record it anew")
    options = replace(options, prioritized=_prioritized(source, files))
    if options.nydus is not None or options.overlaybd is not None:
        made = store.convert(ref, target, options=options, progress=progress, sync=sync)
        return Optimized(made, [])
    before = costs(source, store.images, files)
    converted = store.convert(ref, target, options=options, progress=progress, sync=sync)
    after = costs(store.images.select(converted.image, platform), store.images, files)
    by_source = {layer.source.digest: layer for layer in converted.layers}
    # A blob that is there twice is fetched once, and the upper place has all that is recorded.
    layers = {
        layer.digest: OptimizedLayer(by_source[layer.digest], old, new)
        for layer, old, new in zip(source.manifest.layers, before, after, strict=True)
    }
    return Optimized(converted, list(layers.values()))


def _prioritized(source: PlatformImage, files: Attributed) -> dict[str, list[bytes]]:
    """Return the files by layer; those of a layer that the image has twice are one list."""
    layers = source.manifest.layers
    found: dict[str, list[bytes]] = {layer.digest: [] for layer in layers}
    for file in files.files:
        assert file.layer is not None, "files that are attributed have a layer"
        found[layers[file.layer].digest].append(file.path)
    return found

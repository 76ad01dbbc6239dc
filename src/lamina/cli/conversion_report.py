"""What `lamina images convert` and `optimize` say when they are done."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lamina.cli.output import print_table
from lamina.core.units import format_size

if TYPE_CHECKING:
    from lamina.cli.image_recording import Found
    from lamina.image_optimization import Optimized, OptimizedLayer
    from lamina.images.conversion import Converted
    from lamina.images.conversion_layers import ConvertedLayer
    from lamina.images.conversion_nydus import NydusLayer
    from lamina.images.conversion_overlaybd import OverlaybdLayer
    from lamina.images.recording_cost import LayerCost

_DIGEST_SHOWN = 19
"""Characters of a digest that tell one layer from the others."""


def plain_converted(converted: Converted) -> dict[str, object]:
    """Return what `--json` prints of a new image."""
    target = converted.image.target
    return {
        "Name": converted.image.name,
        "Digest": target.digest,
        "MediaType": target.media_type,
        "Layers": [
            *(_plain_layer(layer) for layer in converted.layers),
            *(_plain_nydus(layer) for layer in converted.nydus),
            *(_plain_overlaybd(layer) for layer in converted.overlaybd),
        ],
    }


def _plain_layer(layer: ConvertedLayer) -> dict[str, object]:
    said: dict[str, object] = {
        "Source": layer.source.digest,
        "SourceSize": layer.source.size,
        "Digest": layer.target.digest,
        "Size": layer.target.size,
        "DiffID": layer.diff_id,
    }
    if layer.blob is None:
        return {**said, "Kept": layer.kept}
    return {
        **said,
        "TOCDigest": layer.blob.toc_digest,
        "UncompressedSize": layer.blob.uncompressed_size,
        "Prioritized": layer.blob.prioritized,
    }


def _plain_nydus(layer: NydusLayer) -> dict[str, object]:
    """Return what is said of a blob or a bootstrap; of a layer without data, it has no digest."""
    said: dict[str, object] = {}
    if layer.source is not None:
        said |= {"Source": layer.source.digest, "SourceSize": layer.source.size}
    if layer.target is not None:
        said |= {"Digest": layer.target.digest, "Size": layer.target.size}
    if layer.source is not None:
        said |= {
            "Chunks": layer.chunks,
            "NewChunks": layer.new_chunks,
            "Prioritized": layer.prioritized,
        }
    return said


def _plain_overlaybd(layer: OverlaybdLayer) -> dict[str, object]:
    """Return what is said of a layer; that which says what to prefetch has no source."""
    said: dict[str, object] = {"Digest": layer.target.digest, "Size": layer.target.size}
    if layer.source is not None:
        source = {"Source": layer.source.digest, "SourceSize": layer.source.size}
        said = {**source, **said, "DeviceSize": layer.data}
    return {**said, "Prioritized": layer.prioritized}


def summary(converted: Converted, seconds: float) -> str:
    """Return the line that says how it went."""
    layers: list[ConvertedLayer | NydusLayer | OverlaybdLayer] = [
        *converted.layers,
        *converted.nydus,
        *converted.overlaybd,
    ]
    before = sum(layer.source.size for layer in layers if layer.source is not None)
    after = sum(layer.target.size for layer in layers if layer.target is not None)
    sizes = f"{format_size(before)} of layers are {format_size(after)}"
    return f"{converted.image.name}: done in {seconds:.1f}s, {sizes}"


def plain_optimized(found: Found, optimized: Optimized) -> dict[str, object]:
    """Return what `--json` prints of a new image with files that come first."""
    recorded: dict[str, object] = {
        "Manifest": found.image.descriptor.digest,
        "Files": len(found.files.files),
        "Others": [os.fsdecode(path) for path in found.files.others],
    }
    if found.run is not None:
        recorded |= {
            "Ended": found.run.ended,
            "ExitCode": found.run.code,
            "Lost": found.run.lost,
        }
    said = {**plain_converted(optimized.converted), "Recorded": recorded}
    if not optimized.converted.layers:
        return said
    before = [layer.before for layer in optimized.layers]
    after = [layer.after for layer in optimized.layers]
    return {
        **said,
        "Start": {
            "Layers": [
                {"Before": _plain_cost(layer.before), "After": _plain_cost(layer.after)}
                for layer in optimized.layers
            ],
            "Before": {"Bytes": _bytes(before), "Requests": _requests(before)},
            "After": {
                "Bytes": _bytes(after),
                "Requests": _requests(after),
                "RequestsUnprefetched": sum(cost.requests for cost in after),
            },
        },
    }


def print_optimized(optimized: Optimized) -> None:
    """Print a line for each layer, base first, and their sums; nothing for whole images."""
    if not optimized.converted.layers:
        return
    columns = ("LAYER", "FILES", "SIZE", "PREFETCH", "BYTES", "NOW", "REQUESTS", "NOW")
    rows = [_row(layer.after.digest[:_DIGEST_SHOWN], [layer]) for layer in optimized.layers]
    print_table(columns, [*rows, _row("all", optimized.layers)], padding=2)


def _row(name: str, layers: list[OptimizedLayer]) -> tuple[str, ...]:
    before = [layer.before for layer in layers]
    after = [layer.after for layer in layers]
    return (
        name,
        str(sum(cost.files for cost in after)),
        format_size(sum(cost.file_bytes or 0 for cost in after)),
        format_size(sum(cost.prefetch or 0 for cost in after)),
        format_size(_bytes(before)),
        format_size(_bytes(after)),
        str(_requests(before)),
        str(_requests(after)),
    )


def _bytes(costs: Iterable[LayerCost]) -> int:
    """Return what is fetched: tables of contents, what is prefetched, and what then is missing."""
    return sum(cost.toc + (cost.prefetch or 0) + cost.left_bytes for cost in costs)


def _requests(costs: Iterable[LayerCost]) -> int:
    """Return how often files are fetched: one prefetch, and what the command then waits for."""
    return sum(bool(cost.prefetch) + cost.left for cost in costs)


def _plain_cost(cost: LayerCost) -> dict[str, object]:
    return {
        "Digest": cost.digest,
        "Size": cost.size,
        "IsLazy": cost.is_lazy,
        "Files": cost.files,
        "FileBytes": cost.file_bytes,
        "TOC": cost.toc,
        "Prefetch": cost.prefetch,
        "Needed": cost.needed,
        "Ranges": cost.ranges,
        "RequestsUnprefetched": cost.requests,
        "RequestsLeft": cost.left,
        "BytesLeft": cost.left_bytes,
        "Bytes": _bytes([cost]),
        "Requests": _requests([cost]),
    }

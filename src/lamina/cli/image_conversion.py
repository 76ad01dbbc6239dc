"""`lamina images convert`: ctr's verb that makes images lazy."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from lamina.cli.app import App, Command, Size, parse_labels, pass_app
from lamina.cli.image_transfer import (
    all_platforms_option,
    label_option,
    max_layer_size_option,
    parse_platforms,
    platform_option,
)
from lamina.cli.output import json_option, print_json, say
from lamina.core.units import format_size
from lamina.errors import InvalidArgument
from lamina.layer.limits import LayerLimits

if TYPE_CHECKING:
    from lamina.images.conversion import Converted, ConvertOptions
    from lamina.images.conversion_layers import ConvertedLayer


@click.command(cls=Command)
@click.option("--estargz", is_flag=True, help="Write layers as eStargz.  [default]")
@click.option("--zstdchunked", is_flag=True, help="Write layers as zstd:chunked.")
@click.option(
    "--chunk-size",
    type=Size(),
    default=0,
    metavar="SIZE",
    help="Split files into chunks of this size.  [default: 4MiB]",
)
@click.option(
    "--min-chunk-size",
    type=Size(),
    default=0,
    metavar="SIZE",
    help="Let small chunks share a stream up to this size.  [default: none do]",
)
@click.option(
    "--compression-level",
    type=int,
    metavar="LEVEL",
    help="1 to 9 for eStargz, by zlib; 1 to 22 for zstd:chunked.  [default: ISA-L's best; 3]",
)
@click.option("--oci", is_flag=True, hidden=True, help="Accepted for ctr's sake: it always is.")
@label_option
@platform_option
@all_platforms_option
@max_layer_size_option
@click.option("--sync-fs", is_flag=True, help="Return when the image survives power loss.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@json_option
@click.argument("source")
@click.argument("target")
@pass_app
def convert(
    app: App, /, source: str, target: str, quiet: bool, as_json: bool, **given: Any
) -> None:
    """Make an image TARGET of SOURCE that can be used before it is fetched.

    The blobs of SOURCE have to be here; nothing is unpacked.
    """
    from lamina.cli.progress import shown_progress

    started = time.monotonic()
    options = _options(given)
    with shown_progress(quiet=quiet) as progress:
        converted = app.store.convert(
            source, target, options=options, progress=progress, sync=given["sync_fs"]
        )
    for layer in converted.layers:
        if layer.kept:
            say(f"layer {layer.source.digest} stays as it is: {layer.kept}")
    if as_json:
        print_json(_plain(converted))
    elif not quiet:
        click.echo(_summary(converted, time.monotonic() - started))


def _options(given: dict[str, Any]) -> ConvertOptions:
    from lamina.formats.estargz.writer import DEFAULT_CHUNK, BlobFormat, BlobOptions
    from lamina.images.conversion import ConvertOptions

    if given["estargz"] and given["zstdchunked"]:
        raise InvalidArgument("convert to eStargz and zstd:chunked", hint="choose one of them")
    return ConvertOptions(
        blob=BlobOptions(
            format=BlobFormat.ZSTD_CHUNKED if given["zstdchunked"] else BlobFormat.ESTARGZ,
            level=given["compression_level"],
            chunk_size=given["chunk_size"] or DEFAULT_CHUNK,
            min_chunk_size=given["min_chunk_size"],
        ),
        platforms=parse_platforms(given["platforms"]),
        all_platforms=given["all_platforms"],
        labels=parse_labels(given["labels"]),
        limits=LayerLimits(max_bytes=given["max_layer_size"]),
    )


def _plain(converted: Converted) -> dict[str, object]:
    target = converted.image.target
    return {
        "Name": converted.image.name,
        "Digest": target.digest,
        "MediaType": target.media_type,
        "Layers": [_plain_layer(layer) for layer in converted.layers],
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


def _summary(converted: Converted, seconds: float) -> str:
    before = sum(layer.source.size for layer in converted.layers)
    after = sum(layer.target.size for layer in converted.layers)
    sizes = f"{format_size(before)} of layers are {format_size(after)}"
    return f"{converted.image.name}: done in {seconds:.1f}s, {sizes}"

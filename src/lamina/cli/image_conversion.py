"""`lamina images convert`: images whose layers can be read before they are fetched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lamina.cli.app import App, Command, Size, pass_app
from lamina.cli.image_transfer import (
    all_platforms_option,
    max_layer_size_option,
    parse_platforms,
    platform_option,
)
from lamina.cli.output import json_option, print_json
from lamina.core.units import format_size
from lamina.layer.limits import LayerLimits

if TYPE_CHECKING:
    from lamina.formats.estargz.writer import BlobOptions
    from lamina.images.conversion import Converted, ConvertedLayer

_FORMAT_OPTIONS = (
    click.option("--estargz", is_flag=True, help="Make eStargz layers; the default."),
    click.option("--zstdchunked", is_flag=True, help="Make zstd:chunked layers."),
    click.option(
        "--compression-level",
        type=click.IntRange(1, 22),
        metavar="N",
        help="1 to 9 of zlib for eStargz, 1 to 22 of zstd.  [default: ISA-L's best, or 3]",
    ),
    click.option(
        "--chunk-size",
        type=Size(),
        default=4 << 20,
        metavar="SIZE",
        help="Most of a file that is fetched at once.  [default: 4MiB]",
    ),
    click.option(
        "--prioritized-chunk-size",
        type=Size(),
        default=0,
        metavar="SIZE",
        help="The same for files that come first.",
    ),
    click.option(
        "--min-chunk-size",
        type=Size(),
        default=0,
        metavar="SIZE",
        help="Pack smaller files together up to this.",
    ),
)


def format_options(function: Any) -> Any:
    """Add the options that `blob_options` takes."""
    for option in reversed(_FORMAT_OPTIONS):
        function = option(function)
    return function


def blob_options(given: dict[str, Any]) -> BlobOptions:
    """Return what the options say of the layers' format."""
    from lamina.formats.estargz.writer import BlobFormat, BlobOptions

    if given["estargz"] and given["zstdchunked"]:
        raise click.UsageError("--estargz and --zstdchunked exclude each other")
    return BlobOptions(
        format=BlobFormat.ZSTD_CHUNKED if given["zstdchunked"] else BlobFormat.ESTARGZ,
        level=given["compression_level"],
        chunk_size=given["chunk_size"],
        prioritized_chunk_size=given["prioritized_chunk_size"],
        min_chunk_size=given["min_chunk_size"],
    )


@click.command(cls=Command)
@format_options
@click.option("--oci", is_flag=True, hidden=True, help="Accepted for ctr-remote's sake.")
@platform_option
@all_platforms_option
@max_layer_size_option
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@json_option
@click.argument("source")
@click.argument("target")
@pass_app
def convert(
    app: App, /, source: str, target: str, quiet: bool, as_json: bool, **given: Any
) -> None:
    """Make of the image SOURCE the image TARGET, whose layers can be read file by file.

    lamina images convert --estargz debian:12 registry.example/debian:12-lazy

    Any runtime can pull TARGET as an ordinary image; `--snapshotter stargz` runs it before it is
    fetched. It is an OCI image with new digests; the same input and options give the same bytes.
    """
    from lamina.cli.progress import shown_progress
    from lamina.images.conversion import ConvertOptions

    options = ConvertOptions(
        blob=blob_options(given),
        platforms=parse_platforms(given["platforms"]),
        all_platforms=given["all_platforms"],
        limits=LayerLimits(max_bytes=given["max_layer_size"]),
    )
    with shown_progress(quiet=quiet) as progress:
        converted = app.store.convert(source, target, options=options, progress=progress)
    show_converted(converted, as_json=as_json, quiet=quiet)


def show_converted(converted: Converted, *, as_json: bool, quiet: bool) -> None:
    """Print what has become of an image."""
    if as_json:
        print_json(_plain(converted))
    elif not quiet:
        click.echo(_summary(converted))


def _summary(converted: Converted) -> str:
    layers = [layer for image in converted.layers.values() for layer in image]
    before = format_size(sum(layer.source.size for layer in layers))
    after = format_size(sum(layer.target.size for layer in layers))
    name, digest = converted.image.name, converted.image.target.digest
    return f"{name}@{digest}: {len(layers)} layers, {before} before, {after} now"


def _plain(converted: Converted) -> dict[str, object]:
    return {
        "Name": converted.image.name,
        "Digest": converted.image.target.digest,
        "MediaType": converted.image.target.media_type,
        "Images": [
            {"Manifest": digest, "Layers": [_plain_layer(layer) for layer in layers]}
            for digest, layers in converted.layers.items()
        ],
    }


def _plain_layer(layer: ConvertedLayer) -> dict[str, object]:
    found: dict[str, object] = {
        "Source": layer.source.digest,
        "SourceSize": layer.source.size,
        "Digest": layer.target.digest,
        "Size": layer.target.size,
        "Converted": layer.blob is not None,
    }
    if layer.blob is not None:
        found |= {
            "DiffID": layer.blob.diff_id,
            "TOCDigest": layer.blob.toc_digest,
            "Files": layer.blob.entries,
            "Prioritized": layer.blob.prioritized,
        }
    return found

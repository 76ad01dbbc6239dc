"""What `lamina images convert` and `optimize` share: how the new image is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from lamina.cli.app import Size, parse_labels
from lamina.cli.image_transfer import (
    all_platforms_option,
    label_option,
    max_layer_size_option,
    parse_platforms,
    platform_option,
)
from lamina.errors import InvalidArgument
from lamina.layer.limits import LayerLimits

if TYPE_CHECKING:
    from lamina.formats.estargz.writer import BlobOptions
    from lamina.formats.rafs.writer.options import RafsOptions
    from lamina.images.conversion import ConvertOptions
    from lamina.images.conversion_overlaybd import OverlaybdOptions

_FORMATS = ("estargz", "zstdchunked", "nydus", "overlaybd")
_OPTIONS = (
    click.option("--estargz", is_flag=True, help="Write layers as eStargz.  [default]"),
    click.option("--zstdchunked", is_flag=True, help="Write layers as zstd:chunked."),
    click.option("--nydus", is_flag=True, help="Write a Nydus image: blobs and one bootstrap."),
    click.option(
        "--overlaybd", is_flag=True, help="Write an overlaybd image: layers of a block device."
    ),
    click.option(
        "--fs-version",
        type=click.Choice(["5", "6"]),
        help="Version of the bootstrap of a Nydus image.  [default: 6]",
    ),
    click.option(
        "--compressor",
        type=click.Choice(["none", "lz4_block", "gzip", "zstd", "lz4"]),
        help="How chunks of a Nydus image are compressed, any but lz4, or blocks of an overlaybd "
        "image, lz4 or zstd.  [default: zstd; lz4 with --overlaybd]",
    ),
    click.option(
        "--oci-ref",
        is_flag=True,
        help="Leave the data of a Nydus image in SOURCE's layers, which have to be gzip.",
    ),
    click.option(
        "--chunk-dict",
        metavar="REF",
        help="Leave out chunks that this Nydus image of the same repository has.",
    ),
    click.option(
        "--bs",
        type=click.Choice(["4", "8", "16", "32", "64"]),
        help="Size in KiB of the blocks of an overlaybd image that are compressed; with 64, data "
        "that does not compress is an error.  [default: 4]",
    ),
    click.option(
        "--vsize",
        type=click.IntRange(1, 16384),
        metavar="GIB",
        help="Size in GiB of the device of an overlaybd image.  [default: 64]",
    ),
    click.option(
        "--chunk-size",
        type=Size(),
        metavar="SIZE",
        help="Split files into chunks of this size.  [default: 4MiB; 1MiB with --nydus]",
    ),
    click.option(
        "--prioritized-chunk-size",
        type=Size(),
        default=0,
        metavar="SIZE",
        help="The same for files that come first.  [default: as the others]",
    ),
    click.option(
        "--min-chunk-size",
        type=Size(),
        default=0,
        metavar="SIZE",
        help="Let small chunks share a stream up to this size.  [default: none do]",
    ),
    click.option(
        "--compression-level",
        type=int,
        metavar="LEVEL",
        help="1 to 9 for eStargz, by zlib; 1 to 22 for zstd:chunked.  [default: ISA-L's best; 3]",
    ),
    click.option("--oci", is_flag=True, hidden=True, help="Accepted for ctr's sake: it always is."),
    label_option,
    platform_option,
    all_platforms_option,
    max_layer_size_option,
    click.option("--sync-fs", is_flag=True, help="Return when the image survives power loss."),
    click.option("-q", "--quiet", is_flag=True, help="Show no progress."),
    click.option(
        "--record-in",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Put the files first that this record names, as --record-out or ctr-remote wrote it.",
    ),
    click.option(
        "--record-out",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Write to this file which files come first.",
    ),
)


def conversion_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a verb; `convert_options` takes most of what they yield."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def convert_options(given: dict[str, Any]) -> ConvertOptions:
    """Return what the options ask for, but for the files that come first."""
    from lamina.images.conversion import ConvertOptions

    chosen = [name for name in _FORMATS if given[name]]
    if len(chosen) > 1:
        what = " and ".join(f"--{name}" for name in chosen)
        raise InvalidArgument("convert with", what, hint="choose one of them")
    if given["chunk_dict"] == "":
        raise click.UsageError("--chunk-dict is empty: name a Nydus image, or leave it out")
    return ConvertOptions(
        **_format(given),
        oci_ref=given["oci_ref"],
        chunk_dict=given["chunk_dict"] or "",
        platforms=parse_platforms(given["platforms"]),
        all_platforms=given["all_platforms"],
        labels=parse_labels(given["labels"]),
        limits=LayerLimits(max_bytes=given["max_layer_size"]),
    )


def _format(given: dict[str, Any]) -> dict[str, Any]:
    """Return the one option that says what is written, by its name."""
    if given["overlaybd"]:
        return {"overlaybd": _overlaybd_options(given)}
    _refuse(("bs", "vsize"), "needs --overlaybd")
    return {"nydus": _rafs_options(given)} if given["nydus"] else {"blob": _blob_options(given)}


def _blob_options(given: dict[str, Any]) -> BlobOptions:
    from lamina.formats.estargz.writer import DEFAULT_CHUNK, BlobFormat, BlobOptions

    _refuse(("compressor",), "needs --nydus or --overlaybd")
    _refuse(("fs_version", "oci_ref", "chunk_dict"), "needs --nydus")
    return BlobOptions(
        format=BlobFormat.ZSTD_CHUNKED if given["zstdchunked"] else BlobFormat.ESTARGZ,
        level=given["compression_level"],
        chunk_size=DEFAULT_CHUNK if given["chunk_size"] is None else given["chunk_size"],
        prioritized_chunk_size=given["prioritized_chunk_size"],
        min_chunk_size=given["min_chunk_size"],
    )


def _rafs_options(given: dict[str, Any]) -> RafsOptions:
    from lamina.formats.rafs.flags import Compressor
    from lamina.formats.rafs.writer.options import DEFAULT_CHUNK, RafsOptions

    others = ("prioritized_chunk_size", "min_chunk_size", "compression_level")
    _refuse(others, "cannot be used with --nydus")
    if given["compressor"] == "lz4":
        raise click.UsageError("--compressor lz4 needs --overlaybd; Nydus has lz4_block")
    if given["oci_ref"]:
        _refuse(("compressor",), "cannot be used with --oci-ref")
    default = "gzip" if given["oci_ref"] else "zstd"
    return RafsOptions(
        version=int(given["fs_version"] or 6),
        compressor=Compressor[(given["compressor"] or default).upper()],
        chunk_size=DEFAULT_CHUNK if given["chunk_size"] is None else given["chunk_size"],
    )


def _overlaybd_options(given: dict[str, Any]) -> OverlaybdOptions:
    from lamina.formats.zfile.layout import Algorithm
    from lamina.formats.zfile.writer import ZFileOptions
    from lamina.images.conversion_overlaybd import DEFAULT_SIZE, OverlaybdOptions

    _refuse(("fs_version", "oci_ref", "chunk_dict"), "needs --nydus")
    others = ("chunk_size", "prioritized_chunk_size", "min_chunk_size", "compression_level")
    _refuse(others, "cannot be used with --overlaybd")
    compressor = (given["compressor"] or "lz4").upper()
    if compressor not in Algorithm.__members__:
        raise click.UsageError("--overlaybd takes --compressor lz4 or zstd")
    return OverlaybdOptions(
        ZFileOptions(Algorithm[compressor], int(given["bs"] or 4) << 10),
        given["vsize"] << 30 if given["vsize"] else DEFAULT_SIZE,
    )


def _refuse(names: Sequence[str], why: str) -> None:
    said = click.get_current_context().get_parameter_source
    for name in names:
        if said(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')} {why}")

"""`lamina images pull|import|export`: ctr's verbs that move images."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lamina.cli.app import App, Command, Size, parse_labels, pass_app, snapshotter_option
from lamina.cli.output import binary_input, binary_output
from lamina.cli.registry import NAMES, make_registry, registry_options
from lamina.core.units import format_size
from lamina.layer.limits import LayerLimits

if TYPE_CHECKING:
    from lamina.images.archive.exporting import ExportOptions
    from lamina.images.archive.importing import ImportOptions
    from lamina.images.manifest import Platform
    from lamina.images.operation import Options
    from lamina.images.pull import Pulled

platform_option = click.option(
    "--platform", "platforms", multiple=True, metavar="OS/ARCH", help="Take this platform."
)
all_platforms_option = click.option(
    "--all-platforms", is_flag=True, help="Take the content for all platforms."
)
max_layer_size_option = click.option(
    "--max-layer-size",
    type=Size(),
    default=LayerLimits().max_bytes,
    metavar="SIZE",
    help="Refuse layers that are larger than this uncompressed.  [default: 1TiB]",
)
label_option = click.option(
    "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label the image."
)


@click.command(cls=Command)
@registry_options
@snapshotter_option
@label_option
@platform_option
@all_platforms_option
@click.option("--skip-metadata", is_flag=True, help="Leave out what other platforms need.")
@click.option("--print-chainid", is_flag=True, help="Print the chain id of what was unpacked.")
@click.option("--max-concurrent-downloads", type=click.IntRange(1), default=3, show_default=True)
@max_layer_size_option
@click.option("--sync-fs", is_flag=True, help="Return when the image survives power loss.")
@click.option("--no-unpack", is_flag=True, help="Fetch the content only.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.option("--local", is_flag=True, hidden=True, help="Accepted for ctr's sake: it always is.")
@click.argument("ref")
@pass_app
def pull(app: App, /, ref: str, quiet: bool, print_chainid: bool, **given: Any) -> None:
    """Fetch an image from a registry and unpack it."""
    from lamina.cli.progress import shown_progress

    started = time.monotonic()
    registry = make_registry(**{name: given[name] for name in NAMES})
    with shown_progress(quiet=quiet) as progress:
        pulled = app.store.pull(
            ref,
            snapshotter=given["snapshotter"],
            unpack=not given["no_unpack"],
            registry=registry,
            options=_options(given),
            progress=progress,
            sync=given["sync_fs"],
        )
    if print_chainid:
        for image in pulled.unpacked:
            click.echo(f"image chain ID: {image.chain_id or ''}")
    if not quiet:
        click.echo(_summary(pulled, time.monotonic() - started))


@click.command("import", cls=Command)
@snapshotter_option
@label_option
@platform_option
@all_platforms_option
@click.option("--base-name", default="", help="Take images of this name, and name mere tags so.")
@click.option("--digests", is_flag=True, help="Name images by digest too.")
@click.option("--skip-digest-for-named", is_flag=True, help="... those that have no other name.")
@click.option("--index-name", default="", help="Name the whole index of the archive.")
@click.option("--compress-blobs", is_flag=True, help="Compress the layers of a docker archive.")
@click.option("--no-unpack", is_flag=True, help="Keep the content only.")
@max_layer_size_option
@click.option("--sync-fs", is_flag=True, help="Return when the images survive power loss.")
@click.option("--local", is_flag=True, hidden=True, help="Accepted for ctr's sake: it always is.")
@click.argument("source", metavar="FILE|DIRECTORY|-")
@pass_app
def import_(app: App, /, source: str, **given: Any) -> None:
    """Import images from an OCI layout or a docker archive."""
    from lamina.cli.progress import shown_progress

    opened = binary_input() if source == "-" else Path(source)
    with shown_progress() as progress:
        imported = app.store.import_images(
            opened,
            snapshotter=given["snapshotter"],
            unpack=not given["no_unpack"],
            options=_import_options(given),
            progress=progress,
            sync=given["sync_fs"],
        )
    for image in imported:
        click.echo(image.name)


@click.command(cls=Command)
@platform_option
@all_platforms_option
@click.option("--skip-manifest-json", is_flag=True, help="Leave out what docker needs.")
@click.option("--skip-non-distributable", is_flag=True, help="Leave out foreign layers.")
@click.option("--local", is_flag=True, hidden=True, help="Accepted for ctr's sake: it always is.")
@click.argument("out", metavar="FILE|-")
@click.argument("refs", nargs=-1, required=True)
@pass_app
def export(app: App, /, out: str, refs: tuple[str, ...], **given: Any) -> None:
    """Export images as an OCI layout in a tar file; nothing is left of one that fails."""
    options = _export_options(given)
    if out == "-":
        app.store.export_images(refs, binary_output(), options=options)
        return
    if Path(out).exists() and not Path(out).is_file():  # a device or a pipe stays what it is
        with open(out, "wb") as file:
            app.store.export_images(refs, file, options=options)
        return
    target = Path(out).resolve()
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        with open(partial, "xb") as file:
            app.store.export_images(refs, file, options=options)
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _import_options(given: dict[str, Any]) -> ImportOptions:
    from lamina.images.archive.importing import ImportOptions, Names
    from lamina.images.operation import Options

    return ImportOptions(
        names=Names(
            base=given["base_name"],
            digests=given["digests"],
            skip_digest_for_named=given["skip_digest_for_named"],
            index=given["index_name"],
        ),
        compress=given["compress_blobs"],
        unpacking=Options(
            platforms=parse_platforms(given["platforms"]),
            all_platforms=given["all_platforms"],
            labels=parse_labels(given["labels"]),
            limits=LayerLimits(max_bytes=given["max_layer_size"]),
        ),
    )


def _export_options(given: dict[str, Any]) -> ExportOptions:
    from lamina.images.archive.exporting import ExportOptions

    return ExportOptions(
        platforms=parse_platforms(given["platforms"]),
        all_platforms=given["all_platforms"],
        manifest_json=not given["skip_manifest_json"],
        non_distributable=not given["skip_non_distributable"],
    )


def parse_platforms(names: tuple[str, ...]) -> tuple[Platform, ...]:
    """Return the platforms that `--platform` was given with."""
    from lamina.images.platform import parse_platform

    return tuple(parse_platform(text) for text in names)


def _options(given: dict[str, Any]) -> Options:
    from lamina.images.operation import Options

    return Options(
        platforms=parse_platforms(given["platforms"]),
        all_platforms=given["all_platforms"],
        all_metadata=not given["skip_metadata"],
        labels=parse_labels(given["labels"]),
        downloads=given["max_concurrent_downloads"],
        limits=LayerLimits(max_bytes=given["max_layer_size"]),
    )


def _summary(pulled: Pulled, seconds: float) -> str:
    timings = pulled.timings
    fetched = f", {format_size(timings.downloaded)} downloaded" if timings.downloaded else ""
    slowest = f" ({timings.bottleneck} took longest)" if timings.bottleneck else ""
    return f"{pulled.image.name}: done in {seconds:.1f}s{fetched}{slowest}"

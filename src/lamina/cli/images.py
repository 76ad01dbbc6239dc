"""`lamina images`: ctr's verbs on images."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lamina.cli.app import App, Group, Size, for_each, parse_labels, pass_app, snapshotter_option
from lamina.cli.output import print_json, print_table
from lamina.cli.registry import NAMES, make_registry, registry_options
from lamina.core.units import format_size
from lamina.layer.limits import LayerLimits

if TYPE_CHECKING:
    from lamina.images.archive.exporting import ExportOptions
    from lamina.images.archive.importing import ImportOptions
    from lamina.images.catalogue import Image
    from lamina.images.listing import Listing
    from lamina.images.manifest import Platform
    from lamina.images.operation import Options
    from lamina.images.pull import Pulled

_ALIASES = {"list": "ls", "delete": "rm", "del": "rm", "remove": "rm"}

_directory = click.Path(exists=True, file_okay=False, path_type=Path)

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


@click.group(cls=Group, aliases=_ALIASES)
def images() -> None:
    """Pull, import, export, list and remove images."""


@images.command()
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


@images.command("import")
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

    opened = sys.stdin.buffer if source == "-" else Path(source)
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


@images.command()
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
        app.store.export_images(refs, sys.stdout.buffer, options=options)
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


@images.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Print only the names.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("filters", nargs=-1)
@pass_app
def list_(app: App, quiet: bool, as_json: bool, filters: tuple[str, ...]) -> None:
    """List images, those that a filter matches where any is given."""
    found = list(app.store.images.catalogue.walk(filters))
    if as_json:
        print_json([_plain(app, image) for image in found])
    elif quiet:
        click.echo("".join(f"{image.name}\n" for image in found), nl=False)
    else:
        columns = ("REF", "TYPE", "DIGEST", "SIZE", "PLATFORMS", "LABELS")
        print_table(columns, [_row(app, image) for image in found])


@images.command()
@click.option("--sync", is_flag=True, help="Return when the disk space is free.")
@click.argument("refs", nargs=-1, required=True)
@pass_app
def rm(app: App, sync: bool, refs: tuple[str, ...]) -> None:
    """Remove images, and the content and layers that nothing else needs."""

    def remove(ref: str) -> None:
        app.store.remove_image(ref)
        click.echo(ref)

    try:
        for_each(refs, remove)
    finally:
        if sync:
            app.store.cleanup()
        else:
            app.store.collect()


@images.command()
@snapshotter_option
@platform_option
@click.option("--rw", "writable", is_flag=True, help="Make changes possible.")
@click.argument("ref")
@click.argument("target", type=_directory)
@pass_app
def mount(
    app: App,
    ref: str,
    target: Path,
    snapshotter: str | None,
    platforms: tuple[str, ...],
    writable: bool,
) -> None:
    """Mount an image's root file system on the directory TARGET."""
    from lamina.image_mount import mount_image
    from lamina.images.operation import Options

    options = Options(platforms=_platforms({"platforms": platforms}))
    chain_id = mount_image(
        app.store, ref, target, writable=writable, snapshotter=snapshotter, options=options
    )
    click.echo(chain_id or "")
    click.echo(target)


@images.command()
@snapshotter_option
@click.option("--rm", "remove", is_flag=True, help="Remove the snapshot too, changes included.")
@click.argument("target", type=_directory)
@pass_app
def unmount(app: App, target: Path, snapshotter: str | None, remove: bool) -> None:
    """Unmount the image mounted on TARGET."""
    from lamina.image_mount import unmount_image

    unmount_image(app.store, target, remove=remove, snapshotter=snapshotter)
    click.echo(target)


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
            platforms=_platforms(given),
            all_platforms=given["all_platforms"],
            labels=parse_labels(given["labels"]),
            limits=LayerLimits(max_bytes=given["max_layer_size"]),
        ),
    )


def _export_options(given: dict[str, Any]) -> ExportOptions:
    from lamina.images.archive.exporting import ExportOptions

    return ExportOptions(
        platforms=_platforms(given),
        all_platforms=given["all_platforms"],
        manifest_json=not given["skip_manifest_json"],
        non_distributable=not given["skip_non_distributable"],
    )


def _platforms(given: dict[str, Any]) -> tuple[Platform, ...]:
    from lamina.images.platform import parse_platform

    return tuple(parse_platform(text) for text in given["platforms"])


def _options(given: dict[str, Any]) -> Options:
    from lamina.images.operation import Options

    return Options(
        platforms=_platforms(given),
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


def _row(app: App, image: Image) -> tuple[str, ...]:
    listing = _listing(app, image)
    labels = ",".join(f"{key}={value}" for key, value in sorted(image.labels.items())) or "-"
    return (
        image.name,
        image.target.media_type,
        image.target.digest,
        format_size(listing.size),
        ",".join(listing.platforms) or "-",
        labels,
    )


def _plain(app: App, image: Image) -> dict[str, object]:
    listing = _listing(app, image)
    return {
        "Name": image.name,
        "Target": {
            "MediaType": image.target.media_type,
            "Digest": image.target.digest,
            "Size": image.target.size,
        },
        "Size": listing.size,
        "Platforms": list(listing.platforms),
        "Labels": dict(image.labels),
    }


def _listing(app: App, image: Image) -> Listing:
    from lamina.images.listing import describe

    return describe(image.target, app.store.images.read)

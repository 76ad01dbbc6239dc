"""`lamina images ls|check|usage|tag|label|rm|prune`: ctr's verbs on the records of images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import click

from lamina.cli.app import App, Command, for_each, parse_labels, pass_app, snapshotter_option
from lamina.cli.output import format_labels, json_option, print_json, print_labels, print_table, say
from lamina.core.units import format_size
from lamina.errors import DataLoss, FailedPrecondition, NotFound

if TYPE_CHECKING:
    from lamina.images.catalogue import Image
    from lamina.images.check import Availability
    from lamina.images.content import ContentStore
    from lamina.images.listing import Listing
    from lamina.images.manifest import Manifest

log = logging.getLogger(__name__)


@click.command("ls", cls=Command)
@click.option("-q", "--quiet", is_flag=True, help="Print only the names.")
@json_option
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


@click.command(cls=Command)
@snapshotter_option
@click.option("-q", "--quiet", is_flag=True, help="Print only the names of those that are ready.")
@click.option(
    "--deep",
    is_flag=True,
    help="Verify every chunk of Nydus images, and every block of overlaybd images.",
)
@json_option
@click.argument("filters", nargs=-1)
@pass_app
def check(
    app: App,
    snapshotter: str | None,
    quiet: bool,
    deep: bool,
    as_json: bool,
    filters: tuple[str, ...],
) -> None:
    """Tell whether all content of images is here, and whether they are unpacked.

    An image is ready if both is so. The exit code is 0 if all of those shown are. The layers of
    overlaybd images have to make a device. No registry is asked for any of it.
    """
    from lamina.images.check import available

    images = app.store.images
    name = snapshotter or app.store.default_snapshotter
    found = [
        (image, available(image.target, images.read, images.content.has))
        for image in images.catalogue.walk(filters)
    ]
    faults = {image.name: _faults(app, image, deep=deep) for image, _content in found}
    if not deep:  # what was not asked for is told only where there is something to tell
        faults = {ref: said for ref, said in faults.items() if said}
    rows = [(image, content, _unpacked(app, content, name)) for image, content in found]
    ready = [image.name for image, content, unpacked in rows if content.complete and unpacked]
    if as_json:
        print_json([_plain_check(*row, name, faults) for row in rows])
    elif quiet:
        click.echo("".join(f"{ref}\n" for ref in ready), nl=False)
    else:
        columns = ("REF", "TYPE", "DIGEST", "STATUS", "SIZE", "UNPACKED")
        print_table(columns, [_check_row(*row) for row in rows])
    _refuse_damaged(faults)
    if len(ready) < len(rows):
        what = f"check: {len(rows) - len(ready)} of {len(rows)} images are not ready in"
        hint = "images pull --no-unpack gets what is missing, images pull unpacks"
        if all(content.complete for _image, content, _unpacked in rows):
            hint = "nothing of them is missing, but they are not unpacked: images pull does that"
        raise FailedPrecondition(what, name, hint=hint)


@click.command(cls=Command)
@snapshotter_option
@json_option
@click.argument("ref")
@pass_app
def usage(app: App, snapshotter: str | None, as_json: bool, ref: str) -> None:
    """Show what each layer of an unpacked image occupies, the top one first."""
    from lamina.images.check import available

    images = app.store.images
    image = app.store.image(ref)
    key = available(image.target, images.read, images.content.has).chain_id or ""
    engine = app.store.snapshotter(snapshotter)
    used = []
    while key:
        used.append((key, engine.usage(key)))
        key = engine.stat(key).parent
    if as_json:
        print_json([{"Key": key, "Size": u.size, "Inodes": u.inodes} for key, u in used])
        return
    rows = ((key, format_size(u.size), str(u.inodes)) for key, u in used)
    print_table(("KEY", "SIZE", "INODES"), rows)


@click.command(cls=Command)
@click.option("--force", is_flag=True, help="Take names from other images.")
@click.option("--skip-reference-check", is_flag=True, help="Take the names as they stand.")
@click.option("--local", is_flag=True, hidden=True, help="Accepted for ctr's sake: it always is.")
@click.argument("source")
@click.argument("targets", nargs=-1, required=True)
@pass_app
def tag(
    app: App,
    source: str,
    targets: tuple[str, ...],
    force: bool,
    skip_reference_check: bool,
    local: bool,
) -> None:
    """Give an image more names; short ones such as `debian:12` are completed as docker does."""
    from lamina.images.reference import parse

    names = targets if skip_reference_check else [str(parse(target)) for target in targets]
    image = app.store.image(source)

    def add(name: str) -> None:
        app.store.images.catalogue.tag(image.name, name, force=force)
        click.echo(name)

    for_each(names, add)
    if force:  # what a name has pointed at may be named by nothing now
        app.store.collect()


@click.command(cls=Command)
@click.option("-r", "--replace-all", is_flag=True, help="Delete all labels that are not given.")
@json_option
@click.argument("ref")
@click.argument("labels", nargs=-1, metavar="[KEY=VALUE]...")
@pass_app
def label(app: App, ref: str, labels: tuple[str, ...], replace_all: bool, as_json: bool) -> None:
    """Set labels, delete them with `KEY=`, and print those that there are then."""
    image = app.store.image(ref)
    if labels or replace_all:
        changes = parse_labels(labels)
        image = app.store.images.catalogue.label(image.name, changes, replace=replace_all)
    print_labels(image.labels, as_json=as_json)


@click.command(cls=Command)
@click.option("--sync", is_flag=True, help="Return when the disk space is free.")
@click.argument("refs", nargs=-1, required=True)
@pass_app
def rm(app: App, sync: bool, refs: tuple[str, ...]) -> None:
    """Remove images, and the content and layers that nothing else needs."""
    _remove(app, refs, sync=sync)


@click.command(cls=Command)
@click.option("--all", "everything", is_flag=True, help="Confirm that all of them are to go.")
@pass_app
def prune(app: App, everything: bool) -> None:
    """Remove the images that no container was made from."""
    from lamina.images.pruning import unused_images

    in_use = [container.image for container in app.store.containers.list()]
    unused = [image.name for image in unused_images(app.store.images, in_use)]
    if not everything:
        log.warning("nothing removed: --all removes %d images that no container uses", len(unused))
        return
    _remove(app, tuple(unused), sync=False)


def _remove(app: App, refs: tuple[str, ...], *, sync: bool) -> None:
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


def _unpacked(app: App, content: Availability, snapshotter: str) -> bool:
    if content.chain_id is None:
        return content.found and content.complete  # an image without layers
    try:
        app.store.snapshotter(snapshotter).stat(content.chain_id)
    except NotFound:
        return False
    return True


def _check_row(image: Image, content: Availability, unpacked: bool) -> tuple[str, ...]:
    whole = format_size(content.size) if content.found else "?"
    return (
        image.name,
        image.target.media_type,
        image.target.digest,
        content.status,
        f"{format_size(content.present_size)}/{whole}",
        str(unpacked).lower(),
    )


def _faults(app: App, image: Image, *, deep: bool) -> list[str] | None:
    """Return what is wrong with a lazy image; None for another, or one that cannot be checked."""
    from lamina.images.check import manifest_here

    images = app.store.images
    here = manifest_here(image.target, images.read)
    verify = None if here is None else _verifier(image, here[1], deep=deep)
    if here is None or verify is None:
        return None
    missing = [layer for layer in here[1].layers if not images.content.has(layer.digest)]
    if not missing:
        return verify(images.content, here[1])
    if deep:  # as after a pull by a lazy snapshotter
        count = f"{len(missing)} of {len(here[1].layers)} layers are not here"
        say(f"{image.name}: not checked: {count}; images pull --no-unpack gets them")
    return None


def _verifier(
    image: Image, manifest: Manifest, *, deep: bool
) -> Callable[[ContentStore, Manifest], list[str]] | None:
    from lamina.images.nydus import bootstrap_layer
    from lamina.images.nydus_check import verify_nydus
    from lamina.images.overlaybd import is_overlaybd, is_turbo
    from lamina.images.overlaybd_check import verify_overlaybd

    if bootstrap_layer(manifest) is not None:
        return verify_nydus if deep else None
    if not is_overlaybd(manifest):
        return None
    if any(map(is_turbo, manifest.layers)):
        if deep:
            say(f"{image.name}: not checked: its data is in the layers of another image")
        return None
    return partial(verify_overlaybd, deep=deep)


def _refuse_damaged(faults: Mapping[str, list[str] | None]) -> None:
    damaged = {name: found for name, found in faults.items() if found}
    for name, found in damaged.items():
        for fault in found:
            say(f"{name}: {fault}")
    if damaged:
        known = sum(found is not None for found in faults.values())
        hint = "images pull gets anew what content rm removes"
        what = f"check: {len(damaged)} of {known} Nydus and overlaybd images are not sound"
        raise DataLoss(what, hint=hint)


def _plain_check(
    image: Image,
    content: Availability,
    unpacked: bool,
    snapshotter: str,
    faults: Mapping[str, list[str] | None],
) -> dict[str, object]:
    said: dict[str, object] = {"Faults": faults[image.name]} if image.name in faults else {}
    return {
        "Name": image.name,
        "Target": _plain_target(image),
        "Status": content.status,
        "Complete": content.complete,
        "Size": content.size,
        "PresentSize": content.present_size,
        "Missing": [blob.digest for blob in content.missing],
        "Snapshotter": snapshotter,
        "ChainID": content.chain_id or "",
        "Unpacked": unpacked,
        **said,
    }


def _row(app: App, image: Image) -> tuple[str, ...]:
    listing = _listing(app, image)
    return (
        image.name,
        image.target.media_type,
        image.target.digest,
        format_size(listing.size),
        ",".join(listing.platforms) or "-",
        format_labels(image.labels),
    )


def _plain(app: App, image: Image) -> dict[str, object]:
    listing = _listing(app, image)
    return {
        "Name": image.name,
        "Target": _plain_target(image),
        "Size": listing.size,
        "Platforms": list(listing.platforms),
        "Labels": dict(image.labels),
    }


def _plain_target(image: Image) -> dict[str, object]:
    target = image.target
    return {"MediaType": target.media_type, "Digest": target.digest, "Size": target.size}


def _listing(app: App, image: Image) -> Listing:
    from lamina.images.listing import describe

    return describe(image.target, app.store.images.read)

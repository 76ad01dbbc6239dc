"""`lamina images migrate`: unpacked images from one snapshotter to another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lamina.cli.app import App, Command, for_each, pass_app, snapshotter_option
from lamina.cli.image_transfer import max_layer_size_option
from lamina.cli.output import json_option, print_json
from lamina.core.units import format_size
from lamina.layer.limits import LayerLimits

if TYPE_CHECKING:
    from lamina.images.migration import Migrated


@click.command(cls=Command)
@click.option(
    "--from", "source", metavar="NAME", required=True, help="Snapshotter that has the images."
)
@snapshotter_option
@click.option(
    "--remove-source",
    is_flag=True,
    help="Free them there afterwards; what a container or another image needs stays.",
)
@max_layer_size_option
@click.option("--sync-fs", is_flag=True, help="Return when the copies survive power loss.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@json_option
@click.argument("refs", nargs=-1, required=True, metavar="REF...")
@pass_app
def migrate(app: App, /, refs: tuple[str, ...], as_json: bool, quiet: bool, **given: Any) -> None:
    """Copy unpacked images to another snapshotter, verified, without pulling them again.

    lamina images migrate --from overlayfs --snapshotter devmapper debian:12

    Needs neither a registry nor the blobs of the layers: the files of the snapshots are copied,
    under the same chain ids, and compared entry by entry. What is interrupted goes on with the
    first layer that is missing when it is run again. Containers stay where they are.
    """
    from lamina.cli.progress import shown_progress

    done: list[Migrated] = []
    with shown_progress(quiet=quiet) as progress:

        def one(ref: str) -> None:
            migrated = app.store.migrate(
                ref,
                given["source"],
                given["snapshotter"],
                remove_source=given["remove_source"],
                limits=LayerLimits(max_bytes=given["max_layer_size"]),
                progress=progress,
                sync=given["sync_fs"],
            )
            done.append(migrated)
            if not as_json and not quiet:
                click.echo(_summary(migrated, given["source"]))

        try:
            for_each(refs, one)
        finally:
            if as_json:
                print_json([_plain(migrated) for migrated in done])


def _summary(migrated: Migrated, source: str) -> str:
    layers = [layer for copy in migrated.copies for layer in copy.layers]
    copied = [layer for layer in layers if layer.copied]
    size = format_size(sum(layer.size for layer in copied))
    text = f"{migrated.image.name}: {len(copied)} of {len(layers)} layers copied"
    text += f" ({size}) and verified" if copied else ", all were there"
    if migrated.left:
        text += f"; {len(migrated.left)} stay in {source}, something else needs them"
    return text


def _plain(migrated: Migrated) -> dict[str, object]:
    return {
        "Name": migrated.image.name,
        "Images": [
            {
                "Manifest": copy.manifest,
                "Layers": [
                    {
                        "ChainID": layer.chain_id,
                        "Copied": layer.copied,
                        "Size": layer.size,
                        "SameDiffID": layer.identical,
                    }
                    for layer in copy.layers
                ],
            }
            for copy in migrated.copies
        ],
        "Left": list(migrated.left),
    }

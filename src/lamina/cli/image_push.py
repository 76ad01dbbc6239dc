"""`lamina images push`: ctr's verb that brings an image to a registry."""

from __future__ import annotations

import time
from typing import Any

import click

from lamina.cli.app import App, Command, pass_app
from lamina.cli.image_transfer import parse_platforms
from lamina.cli.output import json_option, print_json
from lamina.cli.registry import NAMES, make_registry, registry_options
from lamina.core.units import format_size


@click.command(cls=Command)
@registry_options
@click.option(
    "--platform", "platforms", multiple=True, metavar="OS/ARCH", help="Push this platform only."
)
@click.option("--allow-non-distributable-blobs", is_flag=True, help="Push foreign layers as well.")
@click.option(
    "--max-concurrent-uploaded-layers", type=click.IntRange(1), default=3, show_default=True
)
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.option("--local", is_flag=True, hidden=True, help="Accepted for ctr's sake: it always is.")
@json_option
@click.argument("remote")
@click.argument("local_ref", metavar="[LOCAL]", default="")
@pass_app
def push(
    app: App, /, remote: str, local_ref: str, quiet: bool, as_json: bool, **given: Any
) -> None:
    """Push the image LOCAL to the registry as REMOTE; without LOCAL, the image of that name.

    What the registry has already is not sent again. REMOTE points at the image only once all of
    it is there.
    """
    from lamina.cli.progress import shown_progress
    from lamina.images.push import PushOptions

    started = time.monotonic()
    registry = make_registry(**{name: given[name] for name in NAMES})
    options = PushOptions(
        platforms=parse_platforms(given["platforms"]),
        non_distributable=given["allow_non_distributable_blobs"],
        uploads=given["max_concurrent_uploaded_layers"],
    )
    with shown_progress(quiet=quiet) as progress:
        pushed = app.store.push(
            local_ref or remote, remote, registry=registry, options=options, progress=progress
        )
    if as_json:
        target = pushed.target
        print_json(
            {
                "Name": remote,
                "Digest": target.digest,
                "MediaType": target.media_type,
                "Sent": pushed.sent_bytes,
                "Size": pushed.size,
            }
        )
    elif not quiet:
        sent = f"{format_size(pushed.sent_bytes)} of {format_size(pushed.size)} sent"
        seconds = time.monotonic() - started
        name = remote.partition("@")[0]
        click.echo(f"{name}@{pushed.target.digest}: done in {seconds:.1f}s, {sent}")

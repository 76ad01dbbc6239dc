"""`lamina images mount|unmount`: ctr's verbs on images that are mounted."""

from __future__ import annotations

from pathlib import Path

import click

from lamina.cli.app import App, Command, pass_app, snapshotter_option
from lamina.cli.image_transfer import parse_platforms, platform_option

_directory = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command(cls=Command)
@snapshotter_option
@platform_option
@click.option("--rw", "writable", is_flag=True, help="Make changes possible.")
@click.option("--sync-fs", is_flag=True, help="Return when the layers survive power loss.")
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
    sync_fs: bool,
) -> None:
    """Mount an image's root file system on the directory TARGET."""
    from lamina.image_mount import mount_image
    from lamina.images.operation import Options

    options = Options(platforms=parse_platforms(platforms))
    chain_id = mount_image(
        app.store, ref, target, writable=writable, snapshotter=snapshotter, options=options
    )
    if sync_fs:
        app.store.sync([snapshotter or app.store.default_snapshotter])
    click.echo(chain_id or "")
    click.echo(target)


@click.command(cls=Command)
@snapshotter_option
@click.option("--rm", "remove", is_flag=True, help="Remove the snapshot too, changes included.")
@click.argument("target", type=_directory)
@pass_app
def unmount(app: App, target: Path, snapshotter: str | None, remove: bool) -> None:
    """Unmount the image mounted on TARGET."""
    from lamina.image_mount import unmount_image

    unmount_image(app.store, target, remove=remove, snapshotter=snapshotter)
    click.echo(target)

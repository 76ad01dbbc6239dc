"""What `lamina btrfs` and `lamina zfs` share: a snapshotter's place that is in a sparse file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lamina.cli.app import App, Size
from lamina.cli.output import say
from lamina.cli.program import program

if TYPE_CHECKING:
    from lamina.provision.site import Site

RecordsT = TypeVar("RecordsT")

force_option = click.option(
    "--force", is_flag=True, help="Even if snapshots are lost; they are named."
)


def loop_options(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add --loop and --dir, the file's size and directory; `name` is the snapshotter's."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        size = click.option(
            "--loop",
            "size",
            type=Size(),
            metavar="SIZE",
            required=True,
            help="Make it in a sparse file of this size.",
        )
        directory = click.option(
            "--dir",
            "directory",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help=f"Where the file is.  [default: ROOT/{name}]",
        )
        return size(directory(function))

    return add


def make_site(app: App, records: Callable[[Path], RecordsT]) -> Site[RecordsT]:
    """Return the root's site; `records` opens what was set up there."""
    from lamina.provision.site import Site
    from lamina.provision.unit import BootUnit

    root = app.root.absolute()
    return Site(records=records(root), root=root, program=program(), unit=BootUnit, say=say)


def place_of(app: App, name: str) -> Path:
    """Return the directory of a snapshotter, as configured."""
    from lamina.plugins import directory_of

    return directory_of(name, app.root, app.config)

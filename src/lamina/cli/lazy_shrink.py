"""`shrink`: take from lazy layers the data that can be fetched again."""

from __future__ import annotations

import click

from lamina.cli.app import App, Command, Size, pass_app
from lamina.cli.output import json_option, print_json, say
from lamina.core.units import format_size

SNAPSHOTTER = "stargz"


@click.command(cls=Command)
@click.option(
    "--to",
    type=Size(),
    metavar="SIZE",
    help="Bytes of disk that may be left.  [default: cache_budget of the configuration]",
)
@click.option(
    "--snapshotter",
    metavar="NAME",
    default=SNAPSHOTTER,
    show_default=True,
    help="Snapshotter that has the layers.",
)
@json_option
@pass_app
def shrink(app: App, to: int | None, snapshotter: str, as_json: bool) -> None:
    """Empty the caches of lazy layers, those that were used longest ago first, until the rest fits.

    lamina snapshots shrink --to 5GiB

    What an Active snapshot or a View stands on stays, and whatever is mounted. An emptied layer
    is as it was after the pull: it needs its registry, and is fetched anew when it is read.
    """
    done = app.store.snapshotter(snapshotter).shrink(to)
    if as_json:
        print_json({"Layers": len(done.layers), "Freed": done.freed, "Left": done.left})
        return
    layers = f"{len(done.layers)} layer{'' if len(done.layers) == 1 else 's'}"
    say(f"freed {format_size(done.freed)} of {layers}; {format_size(done.left)} are left")

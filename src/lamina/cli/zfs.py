"""`lamina zfs`: the pool of the zfs snapshotter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lamina.cli.app import App, Group, pass_app
from lamina.cli.loop_place import force_option, loop_options, make_site, place_of
from lamina.cli.output import json_option, print_fields, print_json, say
from lamina.cli.program import say_what_to_run_at_boot
from lamina.core.units import format_size

if TYPE_CHECKING:
    from lamina.zpool.manage import Site
    from lamina.zpool.status import Report

NAME = "zfs"
_POOL = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}", re.ASCII)


@click.group(cls=Group)
def zfs() -> None:
    """Make, watch and remove a pool for the zfs snapshotter."""


def _pool_name(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    if not _POOL.fullmatch(value):
        raise click.BadParameter("a letter, then letters, digits and _ . - are a pool's name")
    return value


@zfs.command()
@loop_options(NAME)
@click.option(
    "--pool",
    default="lamina",
    metavar="NAME",
    show_default=True,
    callback=_pool_name,
    help="Its name.",
)
@pass_app
def setup(app: App, size: int, pool: str, directory: Path | None) -> None:
    """Make a pool that comes back after a reboot, mounted at the snapshotter's directory.

    Run again, it says what is there, imports it if it is not imported, and finishes what an
    interrupted run has left.
    """
    from lamina.zpool import manage
    from lamina.zpool.record import Record

    file = (directory or app.root / NAME).absolute() / f"{pool}.zpool"
    place = place_of(app, NAME)
    site = _site(app)
    made = manage.setup(
        site, Record(pool=pool, file=str(file), size=size, mountpoint=str(place.absolute()))
    )
    before = "was set up before, and is" if made.was_there else "is"
    say(f"pool {pool} {before} mounted at {place}")
    if not made.starts_at_boot:
        say_what_to_run_at_boot(site.command(NAME, "activate"))


@zfs.command()
@pass_app
def activate(app: App) -> None:
    """Import the pool that was set up, and mount it: after a reboot, or `deactivate`."""
    from lamina.zpool import manage

    pool, changed = manage.activate(_site(app))
    say(f"pool {pool} is mounted{'' if changed else ' already'}")


@zfs.command()
@pass_app
def deactivate(app: App) -> None:
    """Export the pool that was set up; nothing is lost."""
    from lamina.zpool import manage

    say(f"pool {manage.deactivate(_site(app))} is exported")


@zfs.command()
@json_option
@pass_app
def status(app: App, as_json: bool) -> None:
    """Show how full the pool at the snapshotter's directory is, and how it is."""
    from lamina.zpool.record import Records
    from lamina.zpool.status import read_status

    place = place_of(app, NAME)
    record = Records(app.root).get()
    ours = record is not None and record.mountpoint == str(place.absolute())
    report = read_status(place, file=record.file if record is not None and ours else "")
    if as_json:
        print_json(_plain(report))
    else:
        print_fields(_lines(report))


@zfs.command()
@force_option
@pass_app
def teardown(app: App, force: bool) -> None:
    """Remove the pool that was set up with its file, and the unit that imports it."""
    from lamina.zpool import manage

    say(f"pool {manage.teardown(_site(app), force=force)} is gone")


def _site(app: App) -> Site:
    from lamina.zpool.record import Records

    return make_site(app, Records)


def _lines(report: Report) -> Iterator[list[str]]:
    pool = report.pool
    yield ["Pool:", pool.name]
    yield ["Health:", pool.health]
    yield ["Allocated:", f"{format_size(pool.allocated)} of {format_size(pool.size)}"]
    if pool.fragmentation is not None:
        yield ["Fragmentation:", f"{pool.fragmentation}% of what is free"]
    if report.file:
        yield ["File:", report.file]
    yield ["Dataset:", report.dataset]
    yield ["Mounted at:", report.mountpoint]
    yield ["Used:", f"{format_size(report.used)}, {format_size(report.available)} available"]
    yield ["Datasets:", str(report.datasets)]


def _plain(report: Report) -> dict[str, object]:
    pool = report.pool
    return {
        "Pool": pool.name,
        "Health": pool.health,
        "Size": pool.size,
        "Allocated": pool.allocated,
        "Free": pool.free,
        "Fragmentation": pool.fragmentation,
        "File": report.file,
        "Dataset": report.dataset,
        "MountPoint": report.mountpoint,
        "Used": report.used,
        "Available": report.available,
        "Datasets": report.datasets,
    }

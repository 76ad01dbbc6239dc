"""`lamina btrfs`: the filesystem of the btrfs snapshotter."""

from __future__ import annotations

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
    from lamina.btrfs.manage import Site
    from lamina.btrfs.record import Quota
    from lamina.btrfs.status import Report

NAME = "btrfs"
FILE = "btrfs.img"


@click.group(cls=Group)
def btrfs() -> None:
    """Make, watch and remove a btrfs for the btrfs snapshotter."""


@btrfs.command()
@loop_options(NAME)
@click.option(
    "--quota",
    type=click.Choice(["none", "simple", "full"]),
    help="Count what snapshots take.  [default: simple from Linux 6.7 on, else none]",
)
@pass_app
def setup(
    app: App,
    size: int,
    directory: Path | None,
    quota: Quota | None,
) -> None:
    """Make a btrfs that comes back after a reboot, mounted at the snapshotter's directory.

    Run again, it says what is there, mounts it if it is not mounted, and finishes what an
    interrupted run has left.
    """
    from lamina.btrfs import manage
    from lamina.btrfs.record import Record

    file = (directory or app.root / NAME).resolve() / FILE
    place = place_of(app, NAME).resolve()
    site = _site(app)
    wanted = Record(file=str(file), size=size, place=str(place), quota=quota or "")
    made = manage.setup(site, wanted)
    before = "was set up before, and is" if made.was_there else "is"
    say(f"btrfs {file} {before} mounted at {place}")
    if not made.starts_at_boot:
        say_what_to_run_at_boot(site.command(NAME, "activate"))


@btrfs.command()
@pass_app
def activate(app: App) -> None:
    """Mount the btrfs that was set up: after a reboot, or `deactivate`."""
    from lamina.btrfs import manage

    record, changed = manage.activate(_site(app))
    say(f"btrfs {record.file} is mounted at {record.place}{'' if changed else ' already'}")


@btrfs.command()
@pass_app
def deactivate(app: App) -> None:
    """Unmount the btrfs that was set up; nothing is lost."""
    from lamina.btrfs import manage

    say(f"btrfs {manage.deactivate(_site(app)).file} is not mounted")


@btrfs.command()
@json_option
@pass_app
def status(app: App, as_json: bool) -> None:
    """Show how full the snapshotter's btrfs is, and what its file takes."""
    from lamina.btrfs.record import Records
    from lamina.btrfs.status import read_status

    report = read_status(Records(app.root).get(), place_of(app, NAME))
    if as_json:
        print_json(_plain(report))
    else:
        print_fields(_lines(report))


@btrfs.command()
@force_option
@pass_app
def teardown(app: App, force: bool) -> None:
    """Remove the btrfs that was set up with its file, and the unit that mounts it."""
    from lamina.btrfs import manage

    say(f"btrfs {manage.teardown(_site(app), force=force).file} is gone")


def _site(app: App) -> Site:
    from lamina.btrfs.record import Records

    return make_site(app, Records)


def _lines(report: Report) -> Iterator[list[str]]:
    yield ["Place:", str(report.place)]
    yield ["State:", _state(report)]
    if report.file is not None:
        taken = f"{format_size(report.file.allocated)} of {format_size(report.file.size)} taken"
        yield ["File:", f"{report.file.path}, {taken}"]
    space = report.space
    if space is None:
        return
    used = f"{format_size(space.used)} of {format_size(space.total)} used"
    yield ["Device:", space.device]
    yield ["Space:", f"{used}, {format_size(space.free)} free"]
    yield ["Quotas:", space.quota]
    yield ["Snapshots:", str(space.snapshots)]
    for point in space.mounts:
        yield ["Mounted at:", point]


def _state(report: Report) -> str:
    if report.state in {"making", "removing"}:
        verb = "setup" if report.state == "making" else "teardown"
        return f"half-made or half gone: run `lamina btrfs {verb}` again"
    if report.state == "other":
        return "mounted, and not set up here"
    return "mounted" if report.space else "not mounted: lamina btrfs activate"


def _plain(report: Report) -> dict[str, object]:
    file, space = report.file, report.space
    return {
        "Place": str(report.place),
        "State": report.state,
        "Mounted": space is not None,
        "File": file and {"Path": str(file.path), "Size": file.size, "Allocated": file.allocated},
        "Space": space
        and {
            "Device": space.device,
            "Total": space.total,
            "Used": space.used,
            "Free": space.free,
            "Quota": space.quota,
            "Snapshots": space.snapshots,
            "Mounts": list(space.mounts),
        },
    }

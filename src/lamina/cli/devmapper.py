"""`lamina devmapper`: the thin pool of the devmapper snapshotter."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lamina.cli.app import App, Group, Size, pass_app
from lamina.cli.output import json_option, print_fields, print_json, printable, say
from lamina.cli.program import program, say_what_to_run_at_boot
from lamina.core.units import format_size
from lamina.errors import DataLoss

if TYPE_CHECKING:
    from lamina.pool.manage import Site
    from lamina.pool.plan import LoopPlan, LvmPlan
    from lamina.pool.record import Record
    from lamina.pool.snapshots import PoolSnapshots
    from lamina.pool.status import Below, PoolReport
    from lamina.provision.steps import Made

NAME = "devmapper"

pool_option = click.option(
    "--pool", "name", metavar="NAME", help="Which pool.  [default: the only one]"
)


@click.group(cls=Group)
def devmapper() -> None:
    """Make, watch, mend and remove the thin pool of the devmapper snapshotter."""


@devmapper.command()
@click.option("--loop", is_flag=True, help="Make it of two sparse files, on loop devices.")
@click.option(
    "--device", type=click.Path(path_type=Path), metavar="DISK", help="Make it on a disk, with LVM."
)
@click.option("--vg", "group", metavar="NAME", help="Name of the volume group to make on DISK.")
@click.option("--pool", default="devpool", metavar="NAME", show_default=True, help="Its name.")
@click.option(
    "--data-size", type=Size(), metavar="SIZE", help="Its size.  [default: 100G; of a disk, 90%]"
)
@click.option(
    "--meta-size", type=Size(), metavar="SIZE", help="Of metadata.  [default: 10G; of a disk, 1%]"
)
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the files are.  [default: ROOT/devmapper]",
)
@click.option(
    "--image-size",
    default="10GB",
    metavar="SIZE",
    show_default=True,
    help="base_image_size in the section that is printed.",
)
@click.option(
    "-y", "--yes", "--wipe", "wipe", is_flag=True, help="Take DISK even if something is on it."
)
@pass_app
def setup(
    app: App,
    loop: bool,
    device: Path | None,
    group: str | None,
    pool: str,
    data_size: int | None,
    meta_size: int | None,
    directory: Path | None,
    image_size: str,
    wipe: bool,
) -> None:
    """Make a thin pool that comes back after a reboot; print the configuration's section for it.

    Run again, it says what is there, activates it if it is not active, and finishes what an
    interrupted run has left. What is printed on standard output can be pasted into Lamina's
    configuration or into containerd's.
    """
    from lamina.pool import manage
    from lamina.pool.plan import config_section, plan_loop, plan_lvm

    if loop == (device is not None):
        raise click.UsageError("choose one: --loop, or --device DISK with --vg NAME")
    if (device is None) != (group is None):
        raise click.UsageError("--device DISK and --vg NAME belong together")
    if device is not None and directory is not None:
        raise click.UsageError("--dir is for --loop")
    plan: LoopPlan | LvmPlan
    if device is not None and group is not None:
        plan = plan_lvm(pool, group, device.absolute(), data_size, meta_size)
    else:
        place = (directory or app.root / NAME).absolute()
        plan = plan_loop(pool, place, data_size, meta_size)
    section = config_section(plan.name, image_size)
    with _site(app) as site:
        made = manage.setup(site, plan, confirm=partial(_confirm, wipe))
        _tell(site, made)
    click.echo(section, nl=False)


@devmapper.command()
@pool_option
@pass_app
def activate(app: App, name: str | None) -> None:
    """Activate pools that were set up, by default all: after a reboot, or `deactivate`."""
    from lamina.pool import manage

    with _site(app) as site:
        for device, changed in manage.activate(site, name):
            say(f"pool {device} is active{'' if changed else ' already'}")


@devmapper.command()
@pool_option
@pass_app
def deactivate(app: App, name: str | None) -> None:
    """Deactivate a pool, and the devices on it that nobody uses; nothing is lost."""
    from lamina.pool import manage

    with _site(app) as site:
        say(f"pool {manage.deactivate(site, name)} is not active")


@devmapper.command()
@pool_option
@json_option
@pass_app
def status(app: App, name: str | None, as_json: bool) -> None:
    """Show how full a pool is, what it can still do, and the active devices on it."""
    from lamina.pool.status import read_status

    with _site(app) as site:
        report = read_status(site.dm, _active_name(app, site, name))
    if as_json:
        print_json(_plain(report))
    else:
        print_fields(_lines(report))


@devmapper.command()
@pool_option
@click.option("--data-size", type=Size(), metavar="SIZE", help="What it is to have then.")
@click.option("--meta-size", type=Size(), metavar="SIZE", help="The same of metadata.")
@pass_app
def extend(app: App, name: str | None, data_size: int | None, meta_size: int | None) -> None:
    """Make an active pool larger, while it is used."""
    from lamina.pool import manage

    if data_size is None and meta_size is None:
        raise click.UsageError("say how large: --data-size, --meta-size or both")
    with _site(app) as site:
        report = manage.extend(site, name, data_bytes=data_size, metadata_bytes=meta_size)
    sizes = f"{format_size(report.data_total)}, with {format_size(report.metadata_total)} of"
    click.echo(f"pool {report.name} has {sizes} metadata")


@devmapper.command()
@pool_option
@click.option("--force", is_flag=True, help="Even if snapshots are lost; they are named.")
@pass_app
def teardown(app: App, name: str | None, force: bool) -> None:
    """Remove a pool with its files or its volume group, and the unit that activates it."""
    from lamina.pool import manage

    with _site(app) as site:
        say(f"pool {manage.teardown(site, name, force=force)} is gone")


@devmapper.command()
@pool_option
@pass_app
def trim(app: App, name: str | None) -> None:
    """Give space back: what mounted snapshots have free, or all free blocks of an inactive pool."""
    from lamina.pool import upkeep

    with _site(app) as site:
        record = site.records.find(name)
        trimmed = upkeep.trim(site, record)
    if trimmed is None:
        click.echo(f"pool {record.device}, inactive: all blocks that no device has are given back")
        return
    for point, size in trimmed.filesystems.items():
        result = "takes no discards" if size is None else f"{format_size(size)} trimmed"
        click.echo(printable(f"{point}: {result}"))
    used = f"{format_size(trimmed.before)} before, {format_size(trimmed.after)} now"
    click.echo(f"pool {record.device}: data in use {used}")


@devmapper.command()
@pool_option
@pass_app
def check(app: App, name: str | None) -> None:
    """Check the metadata of an inactive pool; where it is sound, the mark needs_check goes."""
    from lamina.pool import upkeep

    with _site(app) as site:
        record = site.records.find(name)
        if fault := upkeep.check(site, record):
            hint = "lamina devmapper repair"
            raise DataLoss(f"check pool {record.device}: {fault}", hint=hint)
    click.echo(f"pool {record.device}: metadata is sound")


@devmapper.command()
@pool_option
@pass_app
def repair(app: App, name: str | None) -> None:
    """Write the metadata of an inactive pool anew from what can be saved; the old is kept."""
    from lamina.pool import upkeep

    with _site(app) as site:
        record = site.records.find(name)
        kept = upkeep.repair(site, record)
    click.echo(printable(f"pool {record.device}: metadata repaired; the old is kept as {kept}"))
    click.echo("next: lamina devmapper activate, then lamina fsck")


@contextmanager
def _site(app: App) -> Iterator[Site]:
    from lamina.pool.devices import device_mapper
    from lamina.pool.manage import Site
    from lamina.pool.record import Records
    from lamina.pool.unit import pool_unit

    root = app.root
    with device_mapper() as dm:
        yield Site(
            dm=dm,
            records=Records(root),
            root=root,
            program=program(),
            unit=pool_unit,
            snapshots=lambda device: _snapshots(app, device),
            say=say,
        )


def _snapshots(app: App, device: str) -> PoolSnapshots:
    """Return where the snapshotter has its records of a pool, which another may not be."""
    from lamina.plugins import directory_of
    from lamina.pool.snapshots import PoolSnapshots
    from lamina.snapshotters import find

    configured = app.config.snapshotter(find(NAME)).pool_name
    directory = directory_of(NAME, app.root, app.config)
    return PoolSnapshots(directory if configured in {"", device} else Path(os.devnull, NAME))


def _active_name(app: App, site: Site, name: str | None) -> str:
    """Return the pool to show: a recorded one, or else any that is active, made by hand maybe."""
    from lamina.errors import NotFound
    from lamina.pool.devices import active_pool
    from lamina.snapshotters import find

    try:
        return site.records.find(name).device
    except NotFound:
        known = name or app.config.snapshotter(find(NAME)).pool_name
        if not known or active_pool(site.dm, known) is None:
            raise
        return str(known)


def _confirm(wipe: bool, lost: str) -> bool:
    if wipe:
        say(lost)
        return True
    return sys.stdin.isatty() and click.confirm(printable(f"{lost}. Go on?"), err=True)


def _tell(site: Site, made: Made[Record]) -> None:
    device = made.record.device
    before = "was set up before, and is" if made.was_there else "is"
    say(f"pool {device} {before} active")
    if not made.starts_at_boot:
        say_what_to_run_at_boot(site.activation(device))


def _lines(report: PoolReport) -> Iterator[list[str]]:
    needs_check = ", needs_check" if report.needs_check else ""
    low = "unknown"
    if report.metadata_low_water is not None:
        low = format_size(report.metadata_low_water)
    yield ["Pool:", report.name]
    yield ["Mode:", f"{report.mode.value}{needs_check}"]
    yield ["Data:", _share(report.data_used, report.data_total)]
    yield ["Metadata:", _share(report.metadata_used, report.metadata_total)]
    yield ["Low water:", f"{format_size(report.low_water)} of data, {low} of metadata"]
    yield ["Transaction id:", str(report.transaction_id)]
    yield ["Block size:", format_size(report.block)]
    yield ["Discards:", report.discards or "unknown"]
    yield ["When full:", "writes fail" if report.fails_when_full else "writes wait for space"]
    yield ["Data device:", _place(report.data)]
    yield ["Metadata device:", _place(report.metadata)]
    yield ["Active devices:", str(len(report.devices))]
    for device, mapped in report.devices:
        used = f"{format_size(mapped)} of {format_size(device.size)}"
        places = ", ".join(device.mount_points) or ("in use" if device.open_count else "")
        yield ["", device.name, f"id {device.id}", used, places]


def _share(used: int, total: int) -> str:
    percent = 100 * used / total if total else 0
    return f"{format_size(used)} of {format_size(total)} used ({percent:.1f}%)"


def _place(below: Below) -> str:
    file = f" on {below.file}" if below.file else ""
    return f"{below.path}{file}{', direct I/O' if below.direct_io else ''}"


def _plain(report: PoolReport) -> dict[str, object]:
    return {
        "Name": report.name,
        "Mode": report.mode.value,
        "NeedsCheck": report.needs_check,
        "Data": {"Used": report.data_used, "Total": report.data_total},
        "Metadata": {"Used": report.metadata_used, "Total": report.metadata_total},
        "LowWater": report.low_water,
        "MetadataLowWater": report.metadata_low_water,
        "TransactionID": report.transaction_id,
        "BlockSize": report.block,
        "Discards": report.discards,
        "FailsWhenFull": report.fails_when_full,
        "DataDevice": _plain_below(report.data),
        "MetadataDevice": _plain_below(report.metadata),
        "Devices": [
            {
                "Name": device.name,
                "ID": device.id,
                "Size": device.size,
                "Mapped": mapped,
                "OpenCount": device.open_count,
                "MountPoints": list(device.mount_points),
            }
            for device, mapped in report.devices
        ],
    }


def _plain_below(below: Below) -> dict[str, object]:
    return {"Path": below.path, "File": below.file, "DirectIO": below.direct_io}

"""Setting the pool up, and tearing it down: the order of things.

`setup` and `teardown` may be killed anywhere: run again, they finish what the record says.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lamina.core.units import format_size
from lamina.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    LaminaError,
    ToolError,
)
from lamina.linux.mountinfo import mounts_at_or_below
from lamina.linux.zfs import exists
from lamina.provision import site as provision_site
from lamina.provision.record import without_room
from lamina.provision.snapshots import RecordedSnapshots, counted
from lamina.provision.sparse import make_sparse, require_place_for, warn_of_small_disk
from lamina.provision.steps import (
    Made,
    differences,
    install_unit,
    require_one_line,
    require_ready,
    undone_on_failure,
)
from lamina.provision.unit import BootUnit, unit_text
from lamina.snapshotters.zfs.datasets import Datasets, property_of
from lamina.snapshotters.zfs.plugin import why_no_zfs
from lamina.tools import zfs
from lamina.zpool.record import Record, Records
from lamina.zpool.users import users

log = logging.getLogger(__name__)

OWNER = "lamina:root"
"""Property of the pool's dataset: the root that it was set up in."""
SMALLEST = 64 << 20
"""ZFS takes no smaller file."""
PROPERTIES = {"atime": "off", "acltype": "posix", "xattr": "sa", "compression": "lz4"}
"""Of the pool's dataset, and so of all below: what root file systems do well with."""
_SHOWN = 5


Site = provision_site.Site[Records]
"""Where the pool is set up."""


def setup(site: Site, wanted: Record) -> Made[Record]:
    """Set the pool up, or see to it that the one that is there is whole and mounted.

    What fails is undone. One that another run has left half-made is finished.

    Raises:
        InvalidArgument: it is too small, or too large for the disk's filesystem; or a path has a
            line's end in it.
        FailedPrecondition: another was set up, or ZFS cannot be used.
        AlreadyExists: somebody else has the name, the file or the directory.
    """
    require_one_line(site.root, wanted.file, wanted.mountpoint)
    if wanted.size < SMALLEST:
        hint = f"ZFS needs at least {format_size(SMALLEST)}"
        raise InvalidArgument("make a pool of", format_size(wanted.size), hint=hint)
    _require_zfs()
    with site.records.locked():
        found = site.records.get()
        if found is not None and found.state == "removing":
            site.say(f"finish the teardown of {found.pool}, which was interrupted")
            _remove(site, found)
            found = None
        if found is None:
            _make(site, wanted)
            return Made(replace(wanted, state="ready"), False, _install_unit(site, wanted))
        _require_same(found, wanted)
        was_made = found.state == "ready"
        if was_made:
            _activate(site, found)
        else:
            site.say(f"finish {found.pool}, which an interrupted run has left half-made")
            _make_or_import(site, found)
            site.records.write(replace(found, state="ready"))
        return Made(replace(found, state="ready"), was_made, _install_unit(site, found))


def activate(site: Site) -> tuple[str, bool]:
    """Import the pool and mount its dataset; return its name, and whether it was not.

    Raises:
        NotFound: none was set up.
        FailedPrecondition: it is half-made, or somebody else has its name.
        DataLoss: its file is gone.
    """
    site.records.find()  # before the lock, which would make its directory
    _require_zfs()
    with site.records.locked():
        record = site.records.find()
        require_ready(record.state, "import pool", record.pool, command="lamina zfs")
        return record.pool, _activate(site, record)


def deactivate(site: Site) -> str:
    """Export the pool, which keeps its content; return its name.

    Raises:
        FailedPrecondition: it is in use.
        NotFound: none was set up.
    """
    site.records.find()
    _require_zfs()
    with site.records.locked():
        record = site.records.find()
        if not exists(record.pool):
            return record.pool
        _require_ours(site, record)
        _require_unused(record, "export pool")
        RecordedSnapshots(Path(record.mountpoint)).require_closed()
        site.say(f"export pool {record.pool}")
        _let_go(record, "export pool", zfs.export_pool)
        return record.pool


def losses(site: Site, record: Record) -> list[str]:
    """Say what would be lost with the pool, which is imported for that; nothing if it is empty."""
    if record.state != "ready":
        return []
    try:
        _activate(site, record)
    except LaminaError as error:
        return [f"whatever is in it, which is not known: {error}"]
    keys = RecordedSnapshots(Path(record.mountpoint)).keys()
    found = [counted(keys)] if keys else []
    others = [child.dataset for child in Datasets(record.pool).survey() if child.id is None]
    if others:
        found.append(f"datasets that somebody else has made ({', '.join(others[:_SHOWN])})")
    return found


def teardown(site: Site, *, force: bool) -> str:
    """Remove the pool, its file and its unit; return its name.

    Args:
        site: where it is.
        force: also where snapshots are lost.

    Raises:
        FailedPrecondition: something would be lost, and no `force`; or it is in use.
        NotFound: none was set up.
    """
    site.records.find()
    _require_zfs()
    with site.records.locked():
        record = site.records.find()
        lost = losses(site, record)
        if lost and not force:
            hint = f"--force would lose {'; and '.join(lost)}"
            raise FailedPrecondition("tear down pool", record.pool, hint=hint)
        if exists(record.pool):
            _require_ours(site, record)
            _require_unused(record, "tear down pool")
            RecordedSnapshots(Path(record.mountpoint)).require_closed()
        for each in lost:
            log.warning("lost: %s", each)
        _remove(site, record)
        return record.pool


def _make(site: Site, wanted: Record) -> None:
    file, mountpoint = Path(wanted.file), Path(wanted.mountpoint)
    if exists(wanted.pool):
        hint = "it was not set up in this root: choose another name with --pool"
        raise AlreadyExists("make pool", wanted.pool, hint=hint)
    require_place_for(file, wanted.size)
    if file.exists():
        hint = "choose another directory with --dir, or remove it if it is of no use"
        raise AlreadyExists("make file", file, hint=hint)
    if any(mount.point == str(mountpoint.resolve()) for mount in mounts_at_or_below(mountpoint)):
        raise AlreadyExists("mount a dataset at", mountpoint, hint="something is mounted there")
    if mountpoint.exists() and any(mountpoint.iterdir()):
        hint = "move away what is in it, or name another directory with the key root_path"
        raise AlreadyExists("mount a dataset at", mountpoint, hint=hint)
    site.records.write(wanted)
    with undone_on_failure(
        lambda: _remove(site, wanted), name=wanted.pool, command="lamina zfs", say=site.say
    ):
        _make_or_import(site, wanted)
        site.records.write(replace(wanted, state="ready"))


def _make_or_import(site: Site, record: Record) -> None:
    """Make what is not there yet; a pool that is in the file is never made anew."""
    file = Path(record.file)
    if exists(record.pool) or (file.exists() and zfs.has_pool(file)):
        _activate(site, record)
        return
    site.say(f"make {file}, sparse, of {format_size(record.size)}")
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.unlink(missing_ok=True)  # what a killed process has left in it is no pool
    make_sparse(file, record.size)
    warn_of_small_disk(file.parent, record.size, what="pool")
    site.say(f"make pool {record.pool}, mounted at {record.mountpoint}")
    properties = {**PROPERTIES, OWNER: str(site.root)}
    zfs.create_pool(record.pool, file, Path(record.mountpoint), properties)
    Path(record.mountpoint).chmod(0o700)


def _activate(site: Site, record: Record) -> bool:
    changed = False
    if not exists(record.pool):
        if not Path(record.file).exists():
            hint = "is its disk mounted? If it is lost: `lamina zfs teardown --force`"
            raise DataLoss("find the pool's file", record.file, hint=hint)
        site.say(f"import pool {record.pool} from {record.file}")
        zfs.import_pool(record.pool, Path(record.file))
        changed = True
    _require_ours(site, record)
    if not _is_mounted(record):
        zfs.mount(record.pool)
        changed = True
    return changed


def _is_mounted(record: Record) -> bool:
    point = str(Path(record.mountpoint).resolve())
    mounts = [mount for mount in mounts_at_or_below(point) if mount.point == point]
    return bool(mounts) and mounts[-1].source == record.pool


def _require_zfs() -> None:
    if why_no_zfs() is not None:
        with contextlib.suppress(ToolError):
            zfs.pools()  # loads the module, where nothing has needed it since the boot
    if reason := why_no_zfs():
        raise FailedPrecondition(f"use ZFS: {reason[0]}", hint=reason[1])


def _require_ours(site: Site, record: Record) -> None:
    owner = property_of(record.pool, OWNER)
    if owner != str(site.root):
        hint = f"its property {OWNER} is {owner}: it was not set up in {site.root}"
        raise FailedPrecondition("use pool", record.pool, hint=hint)


def _require_unused(record: Record, what: str) -> None:
    if places := users(record.pool):
        hint = f"unmount {', '.join(places[:_SHOWN])}, and stop what uses them"
        raise FailedPrecondition(what, record.pool, hint=hint)


def _require_same(found: Record, wanted: Record) -> None:
    others = differences(
        ("name", found.pool, wanted.pool),
        ("file", found.file, wanted.file),
        ("size", f"{found.size} bytes", f"{wanted.size} bytes"),
        ("directory", found.mountpoint, wanted.mountpoint),
    )
    if others:
        raise FailedPrecondition(
            f"set up pool {wanted.pool}: there is one with {', '.join(others)}",
            hint="`lamina zfs teardown` that one first",
        )


def _remove(site: Site, record: Record) -> None:
    with without_room():
        site.records.write(replace(record, state="removing"))
    unit = _unit(site, record)
    if unit.remove():
        site.say(f"removed {unit.path}")
    if exists(record.pool):
        _require_ours(site, record)
        site.say(f"destroy pool {record.pool}")
        _let_go(record, "destroy pool", zfs.destroy_pool)
    Path(record.file).unlink(missing_ok=True)
    _remove_empty(Path(record.mountpoint))
    site.records.remove()


def _let_go(record: Record, what: str, act: Callable[[str], None]) -> None:
    """Export or destroy the pool.

    Raises:
        FailedPrecondition: somebody has something in it open.
    """
    try:
        act(record.pool)
    except ToolError as error:
        if not exists(record.pool):
            raise
        _require_unused(record, what)
        said = error.stderr.strip().splitlines()[-1:]
        hint = "stop `lamina serve` and whatever else uses the snapshotter, then run this again"
        raise FailedPrecondition(f"{what} {record.pool}", *said, hint=hint) from error


def _remove_empty(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError as error:
        log.debug("leave %s: %s", directory, error)


def _install_unit(site: Site, record: Record) -> bool:
    text = unit_text(
        f"ZFS pool {record.pool} for Lamina's zfs snapshotter",
        site.command("zfs", "activate"),
        stop=site.command("zfs", "deactivate"),
        writer="lamina zfs setup",
        module="zfs",
        places=[site.root, Path(record.file).parent, Path(record.mountpoint).parent],
    )
    return install_unit(_unit(site, record), text, site.say)


def _unit(site: Site, record: Record) -> BootUnit:
    return site.unit(f"lamina-zfs-{record.pool}")

"""Looking after a pool: space that nobody needs any more, and metadata that is damaged."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import NamedTuple

from lamina.errors import FailedPrecondition
from lamina.linux.fstrim import trim_filesystem
from lamina.pool.devices import active_pool, thin_devices
from lamina.pool.loop import LoopPool
from lamina.pool.lvm import LvmPool
from lamina.pool.manage import Site, recipe
from lamina.pool.record import Record
from lamina.pool.status import read_status
from lamina.provision.record import sync_directory
from lamina.provision.sparse import attached_directly
from lamina.tools.thin import clear_needs_check, thin_check, thin_repair, thin_trim


class Trimmed(NamedTuple):
    """What a trim came to.

    Attributes:
        filesystems: bytes that each mounted filesystem let go of, by its mount point; None for
            one that takes no discards.
        before: bytes of the pool's data in use before.
        after: and after.
    """

    filesystems: dict[str, int | None]
    before: int
    after: int


def trim(site: Site, record: Record) -> Trimmed | None:
    """Give back what is free: of an active pool, the free space of what is mounted.

    Of a pool that is not active, all blocks that no device has are discarded in what is below it,
    which is the only way to get back those of devices that were deleted without a discard.

    Returns:
        None for a pool that was not active.

    Raises:
        ToolError: thin_trim is missing, or failed.
    """
    if active_pool(site.dm, record.device) is None:
        _trim_below(site, record)
        return None
    before = read_status(site.dm, record.device).data_used
    points = [
        device.mount_points[0]
        for device in thin_devices(site.dm, record.device)
        if device.mount_points
    ]
    filesystems = {point: _trim_mounted(point) for point in points}
    os.sync()
    return Trimmed(filesystems, before, read_status(site.dm, record.device).data_used)


def check(site: Site, record: Record) -> str:
    """Check the metadata of a pool that is not active; return what is wrong, "" if nothing is.

    If it is sound, the kernel's mark that it needs a check is taken back.

    Raises:
        FailedPrecondition: the pool is active.
        ToolError: thin_check is missing.
    """
    with site.records.locked():
        _require_inactive(site, record, "check")
        made = recipe(site, record)
        if isinstance(made, LvmPool):
            # LVM runs thin_check itself, and clears the mark, whenever it activates a pool.
            with made.metadata() as metadata:
                return thin_check(metadata)
        _require_file(made.metadata)
        with attached_directly(made.metadata) as device:
            fault = thin_check(device.path)
            if not fault:
                clear_needs_check(device.path)
        return fault


def repair(site: Site, record: Record) -> str:
    """Write the metadata of a pool that is not active anew; return where the old is kept.

    Raises:
        FailedPrecondition: the pool is active.
        ToolError: a program is missing, or nothing could be saved; all is as it was.
    """
    with site.records.locked():
        _require_inactive(site, record, "repair")
        made = recipe(site, record)
        if isinstance(made, LvmPool):
            return made.repair()
        _require_file(made.metadata)
        return str(_repair_file(made, record))


def _repair_file(pool: LoopPool, record: Record) -> Path:
    """Repair into another file, which then takes the place of the damaged one in one step."""
    old = pool.metadata
    new = old.with_name(f"{old.name}.repairing")
    kept = old.with_name(f"{old.name}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
    try:
        with new.open("wb") as file:
            file.truncate(max(old.stat().st_size, record.metadata_bytes))
            os.fchmod(file.fileno(), 0o600)
        # Devices, since thin-provisioning-tools takes a file only where O_DIRECT works.
        with attached_directly(old) as damaged, attached_directly(new) as repaired:
            thin_repair(damaged.path, repaired.path)
            fault = thin_check(repaired.path)
        if fault:
            what = f"repair {old}: what thin_repair has made of it is no better ({fault})"
            raise FailedPrecondition(what, hint=f"{old} is as it was; keep it for an expert")
        with new.open("rb") as file:
            os.fsync(file.fileno())
        os.link(old, kept)
        new.replace(old)
    finally:
        new.unlink(missing_ok=True)
    sync_directory(old.parent)
    return kept


def _require_inactive(site: Site, record: Record, verb: str) -> None:
    if active_pool(site.dm, record.device) is None:
        return
    used = [str(device) for device in thin_devices(site.dm, record.device) if device.open_count]
    first = f"end what uses {', '.join(used)}, then " if used else ""
    raise FailedPrecondition(
        f"{verb} the metadata of pool {record.device}, which is active",
        hint=f"stop the daemon that uses it, {first}`lamina devmapper deactivate`",
    )


def _require_file(file: Path) -> None:
    if not file.exists():
        hint = "is its disk mounted? If it is lost: `lamina devmapper teardown --force`"
        raise FailedPrecondition("find the pool's file", file, hint=hint)


def _trim_mounted(point: str) -> int | None:
    try:
        return trim_filesystem(point)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EROFS, errno.ENOTTY}:
            raise
        return None


def _trim_below(site: Site, record: Record) -> None:
    with site.records.locked():
        made = recipe(site, record)
        if isinstance(made, LvmPool):
            hint = (
                "LVM does not show the data of a pool alone: activate it, and trim what is mounted"
            )
            raise FailedPrecondition("trim inactive pool", record.device, hint=hint)
        with made.loops() as (data, metadata):
            thin_trim(metadata.path, data.path)

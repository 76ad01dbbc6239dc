"""Setting pools up and tearing them down: the order of things, for either recipe.

`setup` and `teardown` may be killed anywhere: run again, they finish what the record says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, assert_never

from lamina.core.units import format_size
from lamina.errors import FailedPrecondition, InvalidArgument, LaminaError
from lamina.linux.dm import DeviceMapper
from lamina.linux.dm.thin import PoolMode, pool_status
from lamina.pool.devices import fail_all, thin_devices
from lamina.pool.disk import content, require_unused
from lamina.pool.loop import LoopPool
from lamina.pool.lvm import LvmPool
from lamina.pool.plan import LoopPlan, LvmPlan, check_sizes
from lamina.pool.record import Record, Records
from lamina.pool.snapshots import PoolSnapshots, others_data
from lamina.pool.status import PoolReport, read_status
from lamina.pool.unit import pool_unit_text
from lamina.provision.record import without_room
from lamina.provision.snapshots import counted
from lamina.provision.steps import (
    Made,
    Say,
    differences,
    install_unit,
    require_one_line,
    require_ready,
    undone_on_failure,
)
from lamina.provision.unit import BootUnit

log = logging.getLogger(__name__)

Confirm = Callable[[str], bool]


class Site(NamedTuple):
    """Where pools are set up.

    Attributes:
        dm: device-mapper.
        records: what was set up.
        root: Lamina's.
        program: what runs `lamina`, for the unit.
        unit: makes the unit of a pool's device.
        snapshots: what the snapshotter has recorded on a pool's device.
        say: told of each step before it is done.
    """

    dm: DeviceMapper
    records: Records
    root: Path
    program: Sequence[str]
    unit: Callable[[str], BootUnit]
    snapshots: Callable[[str], PoolSnapshots]
    say: Say

    def activation(self, device: str) -> tuple[str, ...]:
        """Return the command that activates a pool after a boot."""
        words = ("--root", str(self.root), "devmapper", "activate", "--pool", device)
        return (*self.program, *words)


def recipe(site: Site, record: Record) -> LoopPool | LvmPool:
    """Return the recipe that a record was made by."""
    match record.kind:
        case "loop":
            return LoopPool(site.dm, record, site.say)
        case "lvm":
            return LvmPool(site.dm, record, site.say)
        case _:
            assert_never(record.kind)


def setup(site: Site, plan: LoopPlan | LvmPlan, *, confirm: Confirm) -> Made[Record]:
    """Set a pool up, or see to it that the one that is there is whole and active.

    What fails is undone. One that another run has left half-made is finished.

    Args:
        site: where.
        plan: what it is to be.
        confirm: asked before anything on a disk is lost, with what it is.

    Raises:
        FailedPrecondition: there is another pool of that name; the disk is in use; `confirm` said
            no.
        AlreadyExists: something else has the name.
        InvalidArgument: a path has a line's end in it; or a file would be too large for the disk's
            filesystem.
    """
    wanted = LoopPool.record(plan) if isinstance(plan, LoopPlan) else LvmPool.record(plan)
    require_one_line(site.root, wanted.directory, wanted.disk)
    with site.records.locked():
        found = site.records.get(wanted.device)
        if found is not None and found.state == "removing":
            site.say(f"finish the teardown of {found.device}, which was interrupted")
            _remove_all(site, found)
            found = None
        if found is None:
            _make(site, wanted, confirm)
            return Made(replace(wanted, state="ready"), False, _install_unit(site, wanted))
        _require_same(found, wanted, plan)
        was_made = found.state == "ready"
        if was_made:
            recipe(site, found).activate()
        else:
            site.say(f"finish {found.device}, which an interrupted run has left half-made")
            recipe(site, found).make()
            site.records.write(replace(found, state="ready"))
        return Made(replace(found, state="ready"), was_made, _install_unit(site, found))


def activate(site: Site, name: str | None) -> list[tuple[str, bool]]:
    """Activate the pool of that name, or all; return their names, and whether they were not.

    Raises:
        FailedPrecondition: one is half-made, or cannot be activated; the others are.
    """
    failures: list[LaminaError] = []
    results = []
    with site.records.locked():
        for record in [site.records.find(name)] if name else site.records.all():
            try:
                results.append((record.device, _activate(site, record)))
            except LaminaError as error:
                failures.append(error)
    for failure in failures[1:]:
        log.warning("%s", failure)
    if failures:
        raise failures[0]
    return results


def deactivate(site: Site, name: str | None) -> str:
    """Deactivate a pool and the devices on it, which keep their content; return its name.

    Raises:
        FailedPrecondition: devices on it are in use.
    """
    with site.records.locked():
        record = site.records.find(name)
        recipe(site, record).deactivate()
        return record.device


def extend(
    site: Site, name: str | None, *, data_bytes: int | None, metadata_bytes: int | None
) -> PoolReport:
    """Make an active pool larger, its data or its metadata or both; return what it is then.

    Nobody has to stop for it. One that was killed on the way is run again.

    Raises:
        InvalidArgument: it is as large already, which includes one that is larger.
        NotFound: it is not active.
    """
    check_sizes(data_bytes, metadata_bytes)
    with site.records.locked():
        record = site.records.find(name)
        report = read_status(site.dm, record.device)
        for what, wanted, present in (
            ("data", data_bytes, report.data_total),
            ("metadata", metadata_bytes, report.metadata_total),
        ):
            if wanted is not None and wanted <= present:
                have = f"it has {format_size(present)}; a pool cannot become smaller"
                text = f"extend {what} of pool {record.device} to {format_size(wanted)}"
                raise InvalidArgument(text, hint=have)
        site.records.write(recipe(site, record).extend(data_bytes, metadata_bytes))
        return read_status(site.dm, record.device)


def losses(site: Site, record: Record) -> list[str]:
    """Say what would be lost with a pool, which is activated for that; nothing if it is empty."""
    snapshots = site.snapshots(record.device)
    found = []
    if keys := snapshots.keys():
        found.append(counted(keys))
    if record.state != "ready":
        return found
    try:
        recipe(site, record).activate()
    except LaminaError as error:
        return [*found, f"whatever is in it, which is not known: {error}"]
    used = [str(device) for device in thin_devices(site.dm, record.device) if device.open_count]
    if used:
        found.append(f"what uses {', '.join(used)}")
    if not keys and (theirs := others_data(site.dm, record.device, snapshots)):
        found.append(theirs)
    return found


def teardown(site: Site, name: str | None, *, force: bool) -> str:
    """Remove a pool, its files or its volume group, its unit, and what is recorded on it.

    Args:
        site: where it is.
        name: which.
        force: also where something is lost; whatever has devices mounted gets I/O errors.

    Returns:
        Its name.

    Raises:
        FailedPrecondition: something would be lost, and no `force`; or a process has the records
            open.
    """
    with site.records.locked():
        record = site.records.find(name)
        lost = losses(site, record)
        if lost and not force and record.state != "removing":
            hint = f"--force would lose {'; and '.join(lost)}"
            raise FailedPrecondition("tear down pool", record.device, hint=hint)
        for each in lost:
            log.warning("lost: %s", each)
        _remove_all(site, record)
        return record.device


def _make(site: Site, wanted: Record, confirm: Confirm) -> None:
    made = recipe(site, wanted)
    made.check()
    if keys := site.snapshots(wanted.device).keys():
        text = "%s snapshots of another pool are recorded in this root: see `lamina fsck --repair`"
        log.warning(text, len(keys))
    if wanted.kind == "lvm":
        _confirm_wipe(Path(wanted.disk), confirm)
    site.records.write(wanted)
    with undone_on_failure(
        lambda: _remove(site, wanted), name=wanted.device, command="lamina devmapper", say=site.say
    ):
        made.make()
        site.records.write(replace(wanted, state="ready"))


def _confirm_wipe(disk: Path, confirm: Confirm) -> None:
    require_unused(disk)
    lost = content(disk)
    if lost and not confirm(f"{disk} is not empty: {', '.join(lost)} would be lost"):
        raise FailedPrecondition(
            f"use {disk}, which has content: {', '.join(lost)}",
            hint="nothing was changed; --wipe sets the pool up all the same, and that is lost",
        )


def _require_same(found: Record, wanted: Record, plan: LoopPlan | LvmPlan) -> None:
    """Refuse to take a pool for another one of its name; sizes count only where they were given."""
    others = differences(
        ("recipe", found.kind, wanted.kind),
        ("directory", found.directory, wanted.directory),
        ("disk", found.disk, wanted.disk),
        ("bytes of data", found.data_bytes, plan.data_bytes or found.data_bytes),
        ("bytes of metadata", found.metadata_bytes, plan.metadata_bytes or found.metadata_bytes),
    )
    if others:
        raise FailedPrecondition(
            f"set up pool {wanted.device}, which is there with {', '.join(others)}",
            hint="choose another --pool, or `lamina devmapper teardown` that one",
        )


def _activate(site: Site, record: Record) -> bool:
    require_ready(record.state, "activate pool", record.device, command="lamina devmapper")
    changed = recipe(site, record).activate()
    status = pool_status(site.dm, record.device, flush=False)
    if status.mode != PoolMode.READ_WRITE or status.needs_check:
        log.warning(
            "pool %s takes no changes (%s%s): `lamina devmapper deactivate`, then `... check`",
            *(record.device, status.mode.value, ", needs_check" if status.needs_check else ""),
        )
    return changed


def _remove_all(site: Site, record: Record) -> None:
    snapshots = site.snapshots(record.device)
    snapshots.require_closed()
    with without_room():
        site.records.write(replace(record, state="removing"))
    snapshots.forget()
    _remove(site, record)


def _remove(site: Site, record: Record) -> None:
    with without_room():
        site.records.write(replace(record, state="removing"))
    unit = site.unit(record.device)
    if unit.remove():
        site.say(f"removed {unit.path}")
    fail_all(site.dm, record.device)
    recipe(site, record).remove()
    site.records.remove(record.device)


def _install_unit(site: Site, record: Record) -> bool:
    places = [site.root, *([Path(record.directory)] if record.directory else [])]
    text = pool_unit_text(record.device, site.activation(record.device), places=places)
    return install_unit(site.unit(record.device), text, site.say)

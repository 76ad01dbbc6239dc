"""Setting a btrfs up and tearing it down: the order of things.

`setup` and `teardown` may be killed anywhere: run again, they finish what the record says.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

from lamina.btrfs.record import Record, Records
from lamina.btrfs.volume import Volume, named, quota_of
from lamina.errors import FailedPrecondition, LaminaError, PermissionDenied
from lamina.provision import site as provision_site
from lamina.provision.record import without_room
from lamina.provision.snapshots import RecordedSnapshots, counted
from lamina.provision.steps import (
    Made,
    differences,
    install_unit,
    require_one_line,
    require_ready,
    undone_on_failure,
)
from lamina.provision.unit import BootUnit, unit_text

log = logging.getLogger(__name__)

_UNIT = "lamina-btrfs"
_SHOWN = 3


Site = provision_site.Site[Records]
"""Where a btrfs is set up."""


def boot_unit(site: Site) -> BootUnit:
    """Return the unit of the root; colons for slashes, since dashes are in many names."""
    return site.unit(f"{_UNIT}-{str(site.root).strip('/').replace('/', ':')}")


def setup(site: Site, wanted: Record) -> Made[Record]:
    """Set a btrfs up, or see to it that the one that is there is whole and mounted.

    What fails is undone. One that another run has left half-made is finished.

    Raises:
        AlreadyExists: the place is on a btrfs, or the file is there.
        FailedPrecondition: there is another one in this root; the place is not empty.
        InvalidArgument: it would be too small, or too large for the disk's filesystem; or a path
            has a line's end in it.
        PermissionDenied: not root.
        ToolError: mkfs.btrfs is missing, or fails.
    """
    _require_root("set up a btrfs")
    require_one_line(site.root, wanted.file, wanted.place)
    with site.records.locked():
        found = site.records.get()
        if found is not None and found.state == "removing":
            site.say(f"finish the teardown of {found.file}, which was interrupted")
            _remove_all(site, found)
            found = None
        if found is None:
            _make(site, wanted)
            return Made(replace(wanted, state="ready"), False, _install_unit(site, wanted))
        _require_same(found, wanted)
        was_made = found.state == "ready"
        if was_made:
            Volume(found, site.say).activate()
        else:
            site.say(f"finish {found.file}, which an interrupted run has left half-made")
            Volume(found, site.say).make()
            site.records.write(replace(found, state="ready"))
        _require_same_quota(found, wanted)
        return Made(replace(found, state="ready"), was_made, _install_unit(site, found))


def activate(site: Site) -> tuple[Record, bool]:
    """Mount what was set up; return its record, and whether it was not mounted.

    Raises:
        FailedPrecondition: it is half-made, or cannot be mounted.
        NotFound: nothing was set up.
        PermissionDenied: not root.
    """
    _require_root("mount a btrfs")
    site.records.find()  # before the lock, which would make its directory
    with site.records.locked():
        record = site.records.find()
        require_ready(record.state, "mount btrfs", record.file, command="lamina btrfs")
        return record, Volume(record, site.say).activate()


def deactivate(site: Site) -> Record:
    """Unmount what was set up, which keeps its content; return its record.

    Raises:
        FailedPrecondition: it is in use.
        NotFound: nothing was set up.
        PermissionDenied: not root.
    """
    _require_root("unmount a btrfs")
    site.records.find()
    with site.records.locked():
        record = site.records.find()
        Volume(record, site.say).deactivate()
        return record


def losses(site: Site, record: Record) -> list[str]:
    """Say what would be lost with a btrfs, which is mounted for that; nothing if it is empty."""
    volume = Volume(record, site.say)
    found = []
    if record.state == "ready":
        try:
            volume.activate()
        except LaminaError as error:
            return [f"whatever is in it, which is not known: {error}"]
    if volume.mounted() is None:
        return []
    if users := volume.users():
        found.append(f"what is mounted at {named(users)}")
    snapshots = RecordedSnapshots(volume.place)
    if keys := snapshots.keys():
        found.append(counted(keys))
    elif not snapshots.exist() and (names := sorted(path.name for path in volume.place.iterdir())):
        more = " and more" if len(names) > _SHOWN else ""
        found.append(f"what somebody else has put there ({', '.join(names[:_SHOWN])}{more})")
    return found


def teardown(site: Site, *, force: bool) -> Record:
    """Remove what was set up: its mount, its file, its unit; return its record.

    Args:
        site: where it is.
        force: also where something is lost; what is mounted from it is unmounted.

    Raises:
        FailedPrecondition: something would be lost, and no `force`; or a process has the records
            open.
        NotFound: nothing was set up.
        PermissionDenied: not root.
    """
    _require_root("tear down a btrfs")
    site.records.find()
    with site.records.locked():
        record = site.records.find()
        lost = losses(site, record)
        if lost and not force and record.state != "removing":
            hint = f"--force would lose {'; and '.join(lost)}"
            raise FailedPrecondition("tear down btrfs", record.place, hint=hint)
        for each in lost:
            log.warning("lost: %s", each)
        _remove_all(site, record)
        return record


def _make(site: Site, wanted: Record) -> None:
    volume = Volume(wanted, site.say)
    volume.check()
    site.records.write(wanted)
    with undone_on_failure(
        lambda: _remove(site, wanted), name=wanted.file, command="lamina btrfs", say=site.say
    ):
        volume.make()
        site.records.write(replace(wanted, state="ready"))


def _require_root(what: str) -> None:
    if os.geteuid() != 0:
        raise PermissionDenied(what, hint="run as root")


def _require_same(found: Record, wanted: Record) -> None:
    """Refuse to take one btrfs for another."""
    others = differences(
        ("size", f"{found.size} bytes", f"{wanted.size} bytes"),
        ("file", found.file, wanted.file),
        ("place", found.place, wanted.place),
    )
    if others:
        _refuse(found, others)


def _require_same_quota(found: Record, wanted: Record) -> None:
    have = quota_of(Path(found.place))
    if wanted.quota not in {"", have}:
        _refuse(found, [f"quotas {have}, not {wanted.quota}"])


def _refuse(found: Record, others: list[str]) -> None:
    raise FailedPrecondition(
        f"set up the btrfs of {found.place}, which is there with {', '.join(others)}",
        hint="leave it as it is, or `lamina btrfs teardown` first",
    )


def _remove_all(site: Site, record: Record) -> None:
    if Volume(record, site.say).mounted() is not None:
        RecordedSnapshots(Path(record.place)).require_closed()
    _remove(site, record)


def _remove(site: Site, record: Record) -> None:
    with without_room():
        site.records.write(replace(record, state="removing"))
    unit = boot_unit(site)
    if unit.remove():
        site.say(f"removed {unit.path}")
    Volume(record, site.say).remove()
    site.records.remove()


def _install_unit(site: Site, record: Record) -> bool:
    text = unit_text(
        f"The btrfs at {record.place} for the btrfs snapshotter",
        site.command("btrfs", "activate"),
        stop=site.command("btrfs", "deactivate"),
        writer="lamina btrfs setup",
        places=[site.root, Path(record.file).parent, Path(record.place).parent],
    )
    return install_unit(boot_unit(site), text, site.say)

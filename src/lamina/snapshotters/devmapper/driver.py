"""Storage of the devmapper snapshotter: a thin device for each snapshot, under containerd's names.

    ROOT/devices.sqlite   which device is whose
    ROOT/devices.owner    the root's name in the leases, which say whose a number is
    ROOT/devices.lock     held by who does what only one may do at a time
    POOL                  the devices; one of them is the template, an empty filesystem

A snapshot's device is a snapshot of its parent's device, or of the template's. It is active, as
/dev/mapper/POOL-snap-ID, from `create` to `seal`, and again once its mounts are asked for. A sealed
device is not active, so nothing can change it and it can be snapshotted as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from lamina.core.driver import Ability, Snapshot
from lamina.core.mount import Mount
from lamina.core.snapshot import EMPTY_LABELS, Kind, Usage
from lamina.errors import DataLoss
from lamina.linux.dm import SECTOR, node
from lamina.snapshotters.devmapper.devices import Device
from lamina.snapshotters.devmapper.filesystem import (
    can_remap,
    is_damaged,
    mount_options,
    refusals,
)
from lamina.snapshotters.devmapper.resize import (
    asked_sectors,
    require_possible,
    resize,
    warn_of_promise,
)
from lamina.snapshotters.devmapper.template import Template
from lamina.snapshotters.devmapper.volumes import Volumes
from lamina.snapshotters.mappings import mapped_root, mapping_options

if TYPE_CHECKING:
    from lamina.core.problem import Problem

log = logging.getLogger(__name__)


class DevmapperDriver:
    """The devmapper driver.

    Args:
        volumes: the devices; closed with the driver.
        template: what snapshots without parent are copies of.
    """

    forks_atomically = True

    def __init__(self, volumes: Volumes, template: Template) -> None:
        self._volumes = volumes
        self._template = template
        self._pool = volumes.pool

    @property
    def abilities(self) -> frozenset[Ability]:
        """Id maps, where the filesystem can be mounted with them."""
        return frozenset({Ability.REMAP_IDS} if can_remap(self._template.filesystem) else ())

    def create(self, snapshot: Snapshot) -> None:
        """Make a copy of the parent's device, or of the template, and activate it.

        Raises:
            ResourceExhausted, FailedPrecondition: see `Pool.require_room`.
            DataLoss: the parent's device is not in the pool.
            InvalidArgument: a label is no id mapping, or no size that the snapshot can have.
        """
        mapped_root(snapshot.labels)  # refuses labels that no mount could be made with
        sectors = asked_sectors(snapshot)
        self._pool.require_room()
        if sectors:
            self._create_sized(snapshot, sectors)
            return
        if snapshot.parents:
            origin = self._device(snapshot.parents[0])
            device = self._volumes.snapshot_of(origin, snapshot.id)
        else:
            device = self._copy_of_template(snapshot.id)
        self._activate_new(device)

    def fork(self, source: Snapshot, target: Snapshot) -> None:
        """Make a copy of the source's device, which is suspended for that moment, and activate it.

        Its filesystem is consistent then, and has all that was written: suspending freezes it.

        Raises:
            ResourceExhausted, FailedPrecondition: see `Pool.require_room`.
            DataLoss: the source's device is not in the pool.
        """
        self._pool.require_room()
        origin = self._device(source.id)
        device = self._volumes.fork(origin, target.id)
        self._volumes.activate(self._pool.snapshot_name(target.id), device)
        self._volumes.devices.set_inherited(device.id, origin.inherited)

    def mounts(self, snapshot: Snapshot) -> list[Mount]:
        """Return the one mount of its device, which is activated if it is not, after a reboot."""
        device = self._device(snapshot.id)
        name = self._pool.snapshot_name(snapshot.id)
        if not self._pool.is_active(name, device.id):
            with self._volumes.alone():
                self._volumes.activate(name, device)
        mapping = mapping_options(snapshot.labels) if can_remap(device.filesystem) else ()
        options = mount_options(device.filesystem, read_only=snapshot.kind == Kind.VIEW)
        return [Mount(device.filesystem, str(node(name)), options=(*mapping, *options))]

    def seal(self, snapshot: Snapshot) -> Usage:
        """Measure and deactivate; what is still mounted goes on, apart from the snapshot.

        Raises:
            DataLoss: the kernel has noted errors in the filesystem.
            ResourceExhausted, FailedPrecondition: see `Pool.require_writable`.
        """
        self._pool.require_writable()
        device = self._device(snapshot.id)
        name = self._pool.snapshot_name(snapshot.id)
        info = self._pool.dm.find(name)
        if info is not None and info.open_count and self._pool.leads_to(name, device.id):
            device = self._volumes.replace(device)
        usage = self._measure(device, intact=True)
        self._pool.deactivate_later(name, device.id)
        return usage

    def usage(self, snapshot: Snapshot) -> Usage:
        """Return what its device has mapped beyond what its parent had."""
        return self._measure(self._device(snapshot.id))

    def destroy(self, id: int) -> None:
        """Delete its device.

        Raises:
            FailedPrecondition: it is mounted.
        """
        device = self._volumes.devices.of(id)
        if device is None:
            return
        self._pool.deactivate(self._pool.snapshot_name(id), device.id)
        self._volumes.delete(device)
        self._volumes.sweep()

    def ids(self) -> list[int]:
        """List the snapshots that have a device in the pool.

        Raises:
            Aborted, FormatError: see `count_devices`.
        """
        absent = self._absent()
        if absent:  # or exchanged for another in that moment
            absent &= self._absent()
        return [id for id in self._volumes.devices.snapshots() if id not in absent]

    def faults(self, exists: Callable[[int], bool]) -> Iterator[Problem]:
        """Return what the pool and the rows have against each other, beyond `ids`."""
        from lamina.snapshotters.devmapper.reconcile import faults

        return faults(self._volumes, exists)

    def sync(self) -> None:
        """Sync the pool, then the rows that tell whose its devices are."""
        self._pool.sync()
        self._volumes.devices.flush()
        self._volumes.sweep()

    def info_labels(self, id: int) -> Mapping[str, str]:
        """Return none."""
        return EMPTY_LABELS

    def close(self) -> None:
        """Close the rows and the pool."""
        self._volumes.close()

    def _device(self, id: int) -> Device:
        device = self._volumes.devices.of(id)
        if device is None:
            hint = "`lamina fsck` tells what can be done"
            raise DataLoss("use the device of snapshot number", id, hint=hint)
        return device

    def _create_sized(self, snapshot: Snapshot, sectors: int) -> None:
        """Make the storage of a snapshot that is to have a size of its own."""
        warn_of_promise(self._volumes, sectors)
        name = self._pool.snapshot_name(snapshot.id)
        if not snapshot.parents:
            filesystem = self._template.filesystem
            device = self._volumes.create_for(snapshot.id, sectors=sectors, filesystem=filesystem)
            self._volumes.activate(name, device)
            with refusals(f"make {filesystem} of {sectors * SECTOR} bytes"):
                self._template.make_on(name, device)
            self._note_inherited(device)
            return
        origin = self._device(snapshot.parents[0])
        require_possible(origin, sectors)
        device = self._volumes.snapshot_of(origin, snapshot.id, sectors=sectors)
        self._activate_new(device)
        if resize(self._volumes, name, device, origin, sectors).sectors < device.sectors:
            self._note_inherited(device)  # some of it is gone

    def _activate_new(self, device: Device) -> None:
        self._volumes.activate(self._pool.snapshot_name(device.snapshot or 0), device)
        self._note_inherited(device)

    def _note_inherited(self, device: Device) -> None:
        mapped = self._pool.mapped_sectors(self._pool.snapshot_name(device.snapshot or 0))
        self._volumes.devices.set_inherited(device.id, mapped)

    def _absent(self) -> set[int]:
        """Return the snapshots whose devices are not in the pool, half made ones included."""
        from lamina.snapshotters.devmapper.census import count_devices  # hardly ever asked

        rows = self._volumes.devices.snapshots()  # first: a device has one before it is made
        present = count_devices(self._pool)
        return {id for id, device in rows.items() if device not in present}

    def _copy_of_template(self, id: int) -> Device:
        template = self._template.ready()
        try:
            return self._volumes.snapshot_of(template, id)
        except DataLoss:  # the pool was made anew, or another configuration has replaced it
            self._template.drop(template)
        return self._volumes.snapshot_of(self._template.ready(), id)

    def _measure(self, device: Device, *, intact: bool = False) -> Usage:
        """Measure a device under its own name or, where it is not active, a private one."""
        name = self._pool.snapshot_name(device.snapshot or 0)
        info = self._pool.dm.find(name)
        if info and not info.goes_when_closed and self._pool.leads_to(name, device.id):
            return self._measure_active(name, device, intact=intact)
        with self._volumes.alone(), self._pool.active(device.id, device.sectors) as private:
            return self._measure_active(private, device, intact=intact)

    def _measure_active(self, name: str, device: Device, *, intact: bool) -> Usage:
        if intact and is_damaged(node(name)):
            raise DataLoss(
                "use filesystem on", node(name),
                hint="the kernel has noted errors in it: see dmesg, and start from its parent",
            )  # fmt: skip
        mapped = self._pool.mapped_sectors(name)
        return Usage(0, max(mapped - device.inherited, 0) * SECTOR)

"""Devices with a row each: made, copied, replaced and deleted such that a kill leaves no riddle.

What only one may do at a time is done under a lock: activating again, suspending, making what no
snapshot has yet. Whoever takes it first ends what a killed holder has left.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from lamina.errors import DataLoss, FailedPrecondition, ResourceExhausted
from lamina.snapshotters.devmapper.devices import Device, Devices
from lamina.snapshotters.devmapper.leases import Leases
from lamina.snapshotters.devmapper.lock import Lock
from lamina.snapshotters.devmapper.pool import Pool

log = logging.getLogger(__name__)


class Volumes:
    """The devices of one root in one pool.

    Args:
        pool: where they are.
        devices: their rows.
        leases: their numbers.
        lock: of this root.
        discard: discard a device's blocks before it is deleted.
    """

    def __init__(
        self, pool: Pool, devices: Devices, leases: Leases, lock: Lock, *, discard: bool
    ) -> None:
        self.pool = pool
        self.devices = devices
        self.leases = leases
        self._lock = lock
        self._discard = discard
        leases.recognise()
        if devices.suspended():
            with self.alone():
                pass
        self.sweep()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only one, threads and processes included; not to be nested."""
        with self._lock.held():
            self._resume_forgotten()
            yield

    def close(self) -> None:
        """Close the rows and the pool."""
        self.devices.close()
        self.pool.close()

    # Making

    def create(self, *, sectors: int, filesystem: str) -> Device:
        """Make an empty device that belongs to nobody yet; call it alone."""
        return self._made(None, sectors, filesystem, self.pool.create_thin)

    def fork(self, origin: Device, snapshot: int) -> Device:
        """Make a snapshot's device as a copy of one that may be mounted now, or activated.

        Raises:
            DataLoss: that one is not in the pool.
        """
        name = self.pool.snapshot_name(origin.snapshot or 0)

        def create(id: int) -> None:
            # Alone: whoever activates what is not active waits until it is copied.
            with self.alone():
                if not self.pool.leads_to(name, origin.id):
                    self._copy(origin, id)
                    return
                with self._suspended(name, origin):
                    self._copy(origin, id)

        return self._made(snapshot, origin.sectors, origin.filesystem, create)

    def create_for(self, snapshot: int, *, sectors: int, filesystem: str) -> Device:
        """Make an empty device for a snapshot."""
        return self._made(snapshot, sectors, filesystem, self.pool.create_thin)

    def snapshot_of(self, origin: Device, snapshot: int, *, sectors: int = 0) -> Device:
        """Make a snapshot's device as a copy of another, which may be mounted.

        Args:
            origin: the other one.
            snapshot: whose device it is to be.
            sectors: its size, if that is more than its origin's.

        Raises:
            DataLoss: the other one is not in the pool.
        """
        name = self.pool.snapshot_name(origin.snapshot or 0)

        def create(id: int) -> None:
            if origin.snapshot is None or not self.pool.leads_to(name, origin.id):
                self._copy(origin, id)
                return
            with self.alone(), self._suspended(name, origin):
                self._copy(origin, id)

        return self._made(snapshot, max(sectors, origin.sectors), origin.filesystem, create)

    def replace(self, device: Device) -> Device:
        """Give a snapshot whose device is in use a copy of it, which nobody can change any more.

        What is in use stays so, and is deleted some time after its end.
        """
        name = self.pool.snapshot_name(device.snapshot or 0)

        def create(id: int) -> None:
            with self._suspended(name, device):
                self._copy(device, id)

        with self.alone():
            copy = self._made(None, device.sectors, device.filesystem, create)
            self.pool.deactivate_later(name, device.id)
            self.devices.exchange(device, copy)
        return copy._replace(snapshot=device.snapshot, inherited=device.inherited)

    def activate(self, name: str, device: Device) -> None:
        """Make a device visible, if it is not; what a killed process has half made goes first.

        Raises:
            DataLoss: it is not in the pool.
            FailedPrecondition: another device has that name.
        """
        try:
            self._activate(name, device)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            if not self.pool.is_active(name, device.id):
                self.pool.deactivate(name, device.id)
                self._activate(name, device)

    def cut(self, name: str, device: Device, sectors: int) -> Device:
        """Make an active device that nobody uses smaller; what was behind its new end is free."""
        self.pool.discard_from(name, sectors)
        self.pool.deactivate(name, device.id)
        self.devices.set_sectors(device.id, sectors)
        smaller = device._replace(sectors=sectors)
        self.activate(name, smaller)
        return smaller

    def _activate(self, name: str, device: Device) -> None:
        with self._required(device):
            self.pool.activate(name, device.id, device.sectors)

    # Deleting

    def delete(self, device: Device) -> None:
        """Delete a device that is not active under a snapshot's name, and its row.

        Raises:
            OSError: EBUSY when it is active.
        """
        self.pool.deactivate(self.pool.private_name(device.id), device.id)
        if self._discard:
            with suppress(DataLoss), self._required(device):  # what is gone has no blocks
                self.pool.discard(device.id, device.sectors)
        self.pool.delete(device.id)
        self.devices.forget(device.id)

    def sweep(self) -> None:
        """Delete what belongs to nobody, unless somebody is just making something."""
        if not self.devices.unowned():
            return
        with self._lock.held_if_free() as free:
            for device in self.devices.unowned() if free else ():
                self._sweep_one(device)

    def reclaim(self, id: int) -> None:
        """Delete a device in a range of this root's that no row knows; none there is no error.

        Raises:
            OSError: EBUSY when somebody has made it visible.
        """
        with self.alone():
            if id not in self.devices.numbers():
                self.pool.deactivate(self.pool.private_name(id), id)
                self.pool.delete(id)

    def abandoned(self) -> list[Device]:
        """Return what belongs to nobody, and is not just being made."""
        with self._lock.held_if_free() as free:
            return self.devices.unowned() if free else []

    def _sweep_one(self, device: Device) -> None:
        try:
            self.delete(device)
        except (FailedPrecondition, OSError) as error:
            log.debug("device %d cannot be deleted yet: %s", device.id, error)

    # Helpers

    def _made(
        self, snapshot: int | None, sectors: int, filesystem: str, create: Callable[[int], None]
    ) -> Device:
        """Make a device under the first number that the pool does not have.

        Where making it fails its row stays, so that what there may be of it is deleted.
        """
        while True:
            device = self._allocated(snapshot, sectors, filesystem)
            try:
                create(device.id)
            except FileExistsError:  # another's, or of a table that is gone
                self.devices.forget(device.id)
                continue
            except DataLoss:  # there is nothing to make it of
                self.devices.forget(device.id)
                raise
            return device

    def _allocated(self, snapshot: int | None, sectors: int, filesystem: str) -> Device:
        for claim in (self.leases.claim, None):
            device = self.devices.allocate(snapshot, sectors=sectors, filesystem=filesystem)
            if device is not None:
                return device
            if claim is not None:
                claim()
        raise ResourceExhausted("take a number for a device", hint="remove snapshots")

    def _copy(self, origin: Device, id: int) -> None:
        with self._required(origin):
            self.pool.create_snap(id, origin.id)

    @contextmanager
    def _suspended(self, name: str, device: Device) -> Iterator[None]:
        """Hold back what is written to an active device, with its filesystem consistent."""
        self.devices.set_suspended(device.id, name)
        try:
            self.pool.suspend(name)
            yield
        finally:
            self.pool.resume(name)
            self.devices.set_suspended(device.id, None)

    def _resume_forgotten(self) -> None:
        """Resume what a killed process has suspended: whatever is mounted there hangs."""
        for id, name in self.devices.suspended().items():
            log.warning("resume a device that a killed process has suspended: %s", name)
            self.pool.resume(name)
            self.devices.set_suspended(id, None)

    @contextmanager
    def _required(self, device: Device) -> Iterator[None]:
        """Say of which device it is that the body does not find it."""
        try:
            yield
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            raise DataLoss(
                f"use device {device.id} of pool", self.pool.name,
                hint="it is not in the pool: `lamina fsck` tells what can be done",
            ) from error  # fmt: skip

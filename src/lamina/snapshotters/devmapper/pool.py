"""The thin pool: whether it can take more, and its devices by number."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lamina.errors import FailedPrecondition, NotFound
from lamina.linux.blockdev import discard
from lamina.linux.dm import SECTOR, DeviceInfo, DeviceMapper, node, thin
from lamina.linux.dm.thin import PoolMode, PoolStatus
from lamina.meta.boot import boot_id
from lamina.snapshotters.devmapper.health import Health

log = logging.getLogger(__name__)

WARN_SECONDS = 3600.0
"""Between two warnings that the pool is filling up."""
BUSY_SECONDS = 0.5
"""How long others, such as udev's programs, may keep a device open that nobody has mounted."""
_POLL_SECONDS = 0.02


class Pool:
    """A thin pool that somebody else has made; threads may share it.

    Args:
        dm: the control device.
        name: of the pool's device, without /dev/mapper.

    Raises:
        NotFound: there is no such device.
        FailedPrecondition: it is no thin pool.
    """

    def __init__(self, dm: DeviceMapper, name: str) -> None:
        self.dm = dm
        self.name = name
        self._warned = float("-inf")
        self._block_bytes = self._read_block_bytes()

    def snapshot_name(self, snapshot: int) -> str:
        """Return the name of a snapshot's device, which is containerd's."""
        return f"{self.name}-snap-{snapshot}"

    def private_name(self, id: int) -> str:
        """Return the name under which a device is active while only the driver uses it."""
        return f"{self.name}-lamina-{id}"

    def close(self) -> None:
        """Close the control device."""
        self.dm.close()

    # Whether it can take more

    def status(self, *, flush: bool = False) -> PoolStatus:
        """Return the pool's state; with `flush`, after it has committed its metadata."""
        return thin.pool_status(self.dm, self.name, flush=flush)

    def require_room(self) -> None:
        """Make sure that the pool can take another snapshot; see `Health`."""
        health = self._health()
        health.require_room()
        if health.filling and time.monotonic() - self._warned > WARN_SECONDS:
            self._warned = time.monotonic()
            log.warning("the pool is filling up: %s", health, extra={"pool": self.name})

    def require_writable(self) -> None:
        """Make sure that the pool takes what is written to it; see `Health`."""
        self._health().require_writable()

    def data_sectors(self) -> int:
        """Return the size of the pool's data; 0 when it is not known."""
        return self.status().total_data * self._block_bytes // SECTOR

    def _health(self) -> Health:
        return Health(self.name, self.status(), block_bytes=self._block_bytes)

    # Its devices

    def create_thin(self, id: int) -> None:
        """Make an empty device.

        Raises:
            FileExistsError: the number is taken.
        """
        thin.create_thin(self.dm, self.name, id)

    def create_snap(self, id: int, origin: int) -> None:
        """Make a device that shares all of `origin`, which is not active or is suspended.

        Raises:
            FileExistsError: the number is taken.
            OSError: ENODATA when there is no `origin`.
        """
        thin.create_snap(self.dm, self.name, id, origin)

    def delete(self, id: int) -> None:
        """Delete a device for good; none there is no error.

        Raises:
            OSError: EBUSY when it is active.
        """
        try:
            thin.delete(self.dm, self.name, id)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise

    def activate(self, name: str, id: int, sectors: int) -> DeviceInfo:
        """Make a device visible; it must not be active under that name.

        Raises:
            OSError: EBUSY when something has that name, ENODATA when there is no such device.
        """
        number = self.dm.info(self.name).number
        table = [thin.thin_target(pool=number, device_id=id, sectors=sectors)]
        return self.dm.activate(name, table)

    def deactivate(self, name: str, id: int) -> None:
        """Take a device away; none there, or another's under that name, is no error.

        Raises:
            FailedPrecondition: it is in use; it goes when that ends.
        """
        deadline = time.monotonic() + BUSY_SECONDS
        while self._is_in_the_way(name, id) and not self._removed(name):
            if time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
                continue
            self.deactivate_later(name, id)
            hint = "it is mounted, or a process has it open: end that first"
            raise FailedPrecondition("remove device", node(name), hint=hint)

    def deactivate_later(self, name: str, id: int) -> None:
        """Take a device away once nobody uses it; none there is no error."""
        if self._is_in_the_way(name, id):
            with _unless_gone():
                self.dm.remove(name, deferred=True)

    def suspend(self, name: str) -> None:
        """Hold back what is written to a device; one that has just gone needs no holding."""
        with _unless_gone():
            self.dm.suspend(name)

    def resume(self, name: str) -> None:
        """Let what is written to a device go on; one that has gone meanwhile is no error."""
        with _unless_gone():
            self.dm.resume(name)

    def is_active(self, name: str, id: int) -> bool:
        """Tell whether a device is visible under that name.

        Raises:
            FailedPrecondition: another device is, or one that goes when it is closed.
        """
        info = self.dm.find(name)
        if info is None or not info.live:
            return False
        if info.goes_when_closed:
            hint = "what it was before its commit is still mounted: unmount that first"
        elif self.leads_to(name, id):
            return True
        else:
            hint = f"something else has this name: see `dmsetup table {name}`"
        raise FailedPrecondition("use device", node(name), hint=hint)

    def leads_to(self, name: str, id: int) -> bool:
        """Tell whether a name is that of this device, if it has a table."""
        return self._mapped_id(name) == id

    def _is_in_the_way(self, name: str, id: int) -> bool:
        """Tell whether a name leads to that device, or to one that a killed process has half made.

        Others may use the pool; what leads to another device is theirs.
        """
        info = self.dm.find(name)
        return info is not None and (not info.live or self.leads_to(name, id))

    def _mapped_id(self, name: str) -> int | None:
        """Return the number of the pool's device that a name leads to."""
        try:
            table = self.dm.table(name)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return None
        if [target.type for target in table] != ["thin"]:
            return None
        return int(table[0].params.split()[1])

    def _removed(self, name: str) -> bool:
        try:
            with _unless_gone():
                self.dm.remove(name)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True

    @contextmanager
    def active(self, id: int, sectors: int) -> Iterator[str]:
        """Make a device visible for the body under a name of its own, and yield that.

        Nobody else may do so with the same device meanwhile.
        """
        name = self.private_name(id)
        self.deactivate(name, id)  # of a process that was killed
        self.activate(name, id, sectors)
        try:
            yield name
        finally:
            self.deactivate(name, id)

    def discard(self, id: int, sectors: int) -> None:
        """Give a device's blocks back to the pool, and to what is below the pool."""
        with self.active(id, sectors) as name:
            self.discard_from(name, 0)

    def discard_from(self, name: str, sector: int) -> None:
        """Give the blocks of an active device back, from one of its sectors on."""
        try:
            discard(node(name), start=sector * SECTOR)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            log.debug("the pool takes no discards", extra={"pool": self.name})

    def mapped_sectors(self, name: str) -> int:
        """Return how much of an active device has blocks, shared ones included."""
        return thin.thin_status(self.dm, name, flush=False).mapped_sectors

    def sync(self) -> None:
        """Make what was written to all its devices durable.

        Raises:
            OSError: the data or the metadata cannot be written.
        """
        fd = os.open(node(self.name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        status = self.status(flush=True)
        if status.mode in {PoolMode.READ_ONLY, PoolMode.FAILED, PoolMode.UNKNOWN}:
            raise OSError(errno.EIO, "the pool takes no changes", str(node(self.name)))

    def identity(self) -> str:
        """Return what differs once the pool has been deactivated, or made anew, since."""
        number = self.dm.info(self.name).number
        device = f"{os.major(number)}:{os.minor(number)}"
        try:
            sequence = Path(f"/sys/dev/block/{device}/diskseq").read_text().strip()
        except FileNotFoundError:  # Linux < 5.15
            sequence = ""
        return f"{boot_id()} {device} {sequence}"

    def metadata_device(self) -> int:
        """Return the dev_t of the device that has the pool's metadata."""
        major, minor = self.dm.table(self.name)[0].params.split()[0].split(":")
        return os.makedev(int(major), int(minor))

    def _read_block_bytes(self) -> int:
        if self.dm.find(self.name) is None:
            raise NotFound("pool device", node(self.name))
        table = self.dm.table(self.name)
        if [target.type for target in table] != ["thin-pool"]:
            raise FailedPrecondition("use as pool", node(self.name), hint="it is no thin pool")
        return int(table[0].params.split()[2]) * SECTOR


@contextmanager
def _unless_gone() -> Iterator[None]:
    """Take a device that is not there for removed."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise

"""What is wrong between the pool and the rows that say whose its devices are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

from lamina.core.problem import Problem, Repair
from lamina.snapshotters.devmapper.census import count_devices
from lamina.snapshotters.devmapper.devices import FIRST_DEVICE_ID, RANGE
from lamina.snapshotters.devmapper.leases import Lease
from lamina.snapshotters.devmapper.volumes import Volumes


def faults(volumes: Volumes, exists: Callable[[int], bool]) -> Iterator[Problem]:
    """Yield every problem; see `Inspectable.faults`."""
    present = count_devices(volumes.pool)
    unknown = _let(present) - volumes.devices.numbers()
    if unknown:  # or just deleted
        yield from _strangers(volumes, sorted(unknown & _let(count_devices(volumes.pool))))
    for snapshot, id in volumes.devices.snapshots().items():
        if id not in present and not exists(snapshot):
            yield _row(volumes, id, snapshot)
    for device in volumes.abandoned():
        if device.id in present:
            yield _abandoned(volumes, device.id)


def _let(present: Iterable[int]) -> set[int]:
    """Return what may be a device of some root's: neither a lease nor below all ranges."""
    return {id for id in present if id >= FIRST_DEVICE_ID and id % RANGE}


def _strangers(volumes: Volumes, ids: Iterable[int]) -> Iterator[Problem]:
    """Tell of devices that no row knows, unless they are those of another root."""
    for start, members in groupby(ids, lambda id: id - id % RANGE):
        lease = volumes.leases.read(start) or Lease()
        if volumes.leases.is_ours(lease):
            yield from (_forgotten(volumes, id) for id in members)
        elif not lease.owner:
            yield from (_stranger(volumes, id, "no root here has this number") for id in members)
        elif why := volumes.leases.is_left_behind(lease):
            yield from (_stranger(volumes, id, why) for id in members)


def _forgotten(volumes: Volumes, id: int) -> Problem:
    """Describe a device of this root's: a power loss has undone the row."""
    what = "it is this root's, and no snapshot knows it"
    repair = Repair("deletes it", lambda: volumes.reclaim(id))
    return Problem(f"device {id} of pool {volumes.pool.name}", what, "", repair)


def _stranger(volumes: Volumes, id: int, what: str) -> Problem:
    """Describe a device that is nobody's, as far as can be seen from here."""
    pool = volumes.pool.name
    fix = f"if nobody uses it, dmsetup message {pool} 0 'delete {id}'"
    return Problem(f"device {id} of pool {pool}", what, fix)


def _row(volumes: Volumes, id: int, snapshot: int) -> Problem:
    what = f"it is listed for snapshot number {snapshot}; there is neither"
    repair = Repair("forgets it", lambda: volumes.devices.forget(id))
    return Problem(f"device {id} of pool {volumes.pool.name}", what, "", repair)


def _abandoned(volumes: Volumes, id: int) -> Problem:
    repair = Repair("deletes it, if it is not mounted", volumes.sweep)
    what = "no snapshot has it any more"
    return Problem(f"device {id} of pool {volumes.pool.name}", what, "", repair)

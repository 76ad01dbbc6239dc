"""What is wrong between the pool and the rows that say whose its devices are."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lamina.core.problem import Problem, Repair
from lamina.snapshotters.devmapper.census import count_devices
from lamina.snapshotters.devmapper.devices import FIRST_DEVICE_ID
from lamina.snapshotters.devmapper.volumes import Volumes


def faults(volumes: Volumes, exists: Callable[[int], bool]) -> Iterator[Problem]:
    """Yield every problem; see `Inspectable.faults`."""
    present = count_devices(volumes.pool)
    unknown = {id for id in present if id >= FIRST_DEVICE_ID} - volumes.devices.numbers()
    if unknown:  # or just deleted
        yield from (_unknown(volumes, id) for id in count_devices(volumes.pool) if id in unknown)
    for snapshot, id in volumes.devices.snapshots().items():
        if id not in present and not exists(snapshot):
            yield _row(volumes, id, snapshot)
    for device in volumes.abandoned():
        if device.id in present:
            yield _abandoned(volumes, device.id)


def _unknown(volumes: Volumes, id: int) -> Problem:
    """Describe a device in Lamina's range: of a root that was deleted, or else another's."""
    pool = volumes.pool.name
    fix = f"if no other root uses the pool, dmsetup message {pool} 0 'delete {id}'"
    return Problem(f"device {id} of pool {pool}", "no snapshot here knows it", fix)


def _row(volumes: Volumes, id: int, snapshot: int) -> Problem:
    what = f"it is listed for snapshot number {snapshot}; there is neither"
    repair = Repair("forgets it", lambda: volumes.devices.forget(id))
    return Problem(f"device {id} of pool {volumes.pool.name}", what, "", repair)


def _abandoned(volumes: Volumes, id: int) -> Problem:
    repair = Repair("deletes it, if it is not mounted", volumes.sweep)
    what = "no snapshot has it any more"
    return Problem(f"device {id} of pool {volumes.pool.name}", what, "", repair)

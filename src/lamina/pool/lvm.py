"""The recipe with a disk given to LVM: a volume group with a thin pool that LVM extends."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lamina.core.units import format_size
from lamina.errors import AlreadyExists, FailedPrecondition
from lamina.linux.dm import DeviceMapper, node, nodes
from lamina.pool.devices import active_pool, remove_idle
from lamina.pool.disk import require_unused, size_of
from lamina.pool.plan import BLOCK_BYTES, LVM_HEADER_BYTES, LvmPlan, lvm_device, lvm_sizes
from lamina.pool.record import Record
from lamina.pool.status import read_status
from lamina.provision.steps import Say
from lamina.tools import lvm
from lamina.tools.lookup import installed
from lamina.tools.wipefs import wipe

log = logging.getLogger(__name__)


TAG = "lamina"
"""On the volume groups that were made here."""
PROFILES = Path("/etc/lvm/profile")
EXTEND_AT_PERCENT = 80
EXTEND_BY_PERCENT = 20

_PROFILE = f"""\
# Written by `lamina devmapper setup`, and removed by its teardown.
activation {{
\tthin_pool_autoextend_threshold = {EXTEND_AT_PERCENT}
\tthin_pool_autoextend_percent = {EXTEND_BY_PERCENT}
}}
"""


class LvmPool:
    """A thin pool in LVM; `make` and `remove` go on where a killed process was."""

    def __init__(self, dm: DeviceMapper, record: Record, say: Say) -> None:
        self._dm = dm
        self._record = record
        self._say = say
        self._group = record.group
        self._pool = record.pool
        self.device = record.device

    @staticmethod
    def record(plan: LvmPlan) -> Record:
        """Return what is recorded of a plan."""
        return Record(
            device=lvm_device(plan.group, plan.pool),
            kind="lvm",
            data_bytes=plan.data_bytes or 0,
            metadata_bytes=plan.metadata_bytes or 0,
            group=plan.group,
            pool=plan.pool,
            disk=str(plan.device),
        )

    @property
    def profile(self) -> Path:
        """The file that says when LVM extends the pool."""
        return PROFILES / f"lamina-{self.device}.profile"

    def check(self) -> None:
        """Make sure that nothing of somebody else's is in the way.

        Raises:
            AlreadyExists: there is a volume group of that name.
            FailedPrecondition: the disk is in use.
            InvalidArgument: the pool does not fit on it.
        """
        disk = Path(self._record.disk)
        require_unused(disk)
        lvm_sizes(self._plan(), size_of(disk) - LVM_HEADER_BYTES)
        if lvm.find_group(self._group) is not None:
            raise AlreadyExists("make volume group", self._group, hint="choose another with --vg")

    def make(self) -> None:
        """Make what is not there yet; whatever was on the disk goes."""
        self._make_group()
        self._write_profile()
        if not lvm.has_volume(self._group, self._pool):
            self._make_pool()
        self._activate()
        if not installed("dmeventd"):
            log.warning("the pool grows only with dmeventd: apt-get install dmeventd")

    def activate(self) -> bool:
        """Activate the pool; return whether it was not active."""
        if active_pool(self._dm, self.device) is not None:
            return False
        self._say(f"activate pool {self.device}")
        self._activate()
        return True

    def deactivate(self) -> None:
        """Deactivate the pool.

        Raises:
            FailedPrecondition: devices on it are in use.
        """
        remove_idle(self._dm, self.device)
        if self._dm.find(self.device) is not None:
            self._say(f"deactivate pool {self.device}")
            lvm.deactivate(self._group, self._pool)

    def extend(self, data_bytes: int | None, metadata_bytes: int | None) -> Record:
        """Make the active pool larger, each where a size is given; return its new record."""
        report = read_status(self._dm, self.device)
        data = data_bytes if (data_bytes or 0) > report.data_total else None
        metadata = metadata_bytes if (metadata_bytes or 0) > report.metadata_total else None
        self._say(f"extend {self._group}/{self._pool}")
        lvm.extend_thin_pool(self._group, self._pool, data_bytes=data, metadata_bytes=metadata)
        return replace(
            self._record,
            data_bytes=data_bytes or self._record.data_bytes,
            metadata_bytes=metadata_bytes or self._record.metadata_bytes,
        )

    def remove(self) -> None:
        """Remove whatever of it is there; what is on it is lost.

        Raises:
            FailedPrecondition: devices on it are in use.
        """
        remove_idle(self._dm, self.device)
        group = lvm.find_group(self._group)
        disks = [disk for disk, name in lvm.physical_volumes().items() if name == self._group]
        if group is not None and TAG in group.tags:
            if lvm.has_volume(self._group, self._pool):
                self._say(f"remove volume {self._group}/{self._pool}")
                lvm.remove_volume(self._group, self._pool)
            self._remove_group(disks)
        elif group is None:
            disk = _device(self._record.disk)
            disks = [path for path, name in lvm.physical_volumes().items() if not name]
            for path in disks:
                if _device(path) == disk:
                    lvm.remove_physical_volume(path)
        if self.profile.exists():
            self._say(f"remove {self.profile}")
            self.profile.unlink(missing_ok=True)

    @contextmanager
    def metadata(self) -> Iterator[Path]:
        """Have the metadata of the inactive pool as a device that can only be read."""
        volume = f"{self._pool}_tmeta"
        lvm.activate(self._group, volume)
        try:
            yield node(lvm_device(self._group, volume))
        finally:
            lvm.deactivate(self._group, volume)

    def repair(self) -> str:
        """Repair the inactive pool's metadata; return where the old is."""
        lvm.repair_thin_pool(self._group, self._pool)
        return f"volume {self._group}/{self._pool}_meta0, or the one with the highest number"

    def _activate(self) -> None:
        lvm.activate(self._group, self._pool)
        # LVM leaves it to udev, which may not be there.
        nodes.make(node(self.device), self._dm.info(self.device).number)

    def _plan(self) -> LvmPlan:
        return LvmPlan(
            pool=self._pool,
            group=self._group,
            device=Path(self._record.disk),
            data_bytes=self._record.data_bytes or None,
            metadata_bytes=self._record.metadata_bytes or None,
        )

    def _make_group(self) -> None:
        if lvm.find_group(self._group) is not None:
            return
        disk = Path(self._record.disk)
        require_unused(disk)
        self._say(f"wipe {disk}")
        wipe(disk)
        self._say(f"make volume group {self._group} on {disk}")
        lvm.make_physical_volume(disk)
        lvm.make_group(self._group, disk, tag=TAG)

    def _make_pool(self) -> None:
        group = lvm.find_group(self._group)
        if group is None or TAG not in group.tags:
            hint = "it is not Lamina's: choose another with --vg"
            raise FailedPrecondition("use volume group", self._group, hint=hint)
        data, metadata = lvm_sizes(self._plan(), group.free_bytes)
        self._say(
            f"make thin pool {self._group}/{self._pool} of {format_size(data)},"
            f" with {format_size(metadata)} of metadata"
        )
        lvm.make_thin_pool(
            self._group,
            self._pool,
            data_bytes=data,
            metadata_bytes=metadata,
            block_bytes=BLOCK_BYTES,
            profile=self.profile.stem,
        )

    def _write_profile(self) -> None:
        self._say(
            f"write {self.profile}: at {EXTEND_AT_PERCENT}% full the pool grows by"
            f" {EXTEND_BY_PERCENT}%"
        )
        self.profile.parent.mkdir(parents=True, exist_ok=True)
        self.profile.write_text(_PROFILE)

    def _remove_group(self, disks: list[str]) -> None:
        group = lvm.find_group(self._group)
        if group is not None and group.volumes:
            log.warning("volume group %s stays: there are other volumes in it", self._group)
            return
        self._say(f"remove volume group {self._group} from {', '.join(disks)}")
        lvm.remove_group(self._group)
        for disk in disks:
            lvm.remove_physical_volume(disk)


def _device(path: str) -> int | None:
    try:
        return Path(path).stat().st_rdev
    except FileNotFoundError:
        return None

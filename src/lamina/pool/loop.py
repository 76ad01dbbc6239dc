"""The recipe with two sparse files on loop devices, as containerd's documentation has it.

The loop devices go by themselves when the pool's device goes, which is all that holds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from lamina.core.units import format_size
from lamina.errors import AlreadyExists, DataLoss, FailedPrecondition
from lamina.linux.dm import DeviceMapper, Target, node
from lamina.linux.loop import LoopDevice, take_over_size
from lamina.pool.devices import active_pool, remove_device, remove_idle
from lamina.pool.plan import (
    DEFAULT_DATA_BYTES,
    DEFAULT_METADATA_BYTES,
    LoopPlan,
    pool_table,
)
from lamina.pool.record import Record
from lamina.provision.record import sync_directory
from lamina.provision.sparse import (
    attached_directly,
    make_sparse,
    require_place_for,
    warn_of_small_disk,
)
from lamina.provision.steps import Say

_UUID = "LAMINA-pool-"


class LoopPool:
    """A pool on two files; `make` and `remove` go on where a killed process was."""

    def __init__(self, dm: DeviceMapper, record: Record, say: Say) -> None:
        self._dm = dm
        self._record = record
        self._say = say
        self._directory = Path(record.directory)
        self.device = record.device
        self.data = self._directory / f"{record.device}.data"
        self.metadata = self._directory / f"{record.device}.metadata"

    @staticmethod
    def record(plan: LoopPlan) -> Record:
        """Return what is recorded of a plan."""
        return Record(
            device=plan.pool,
            kind="loop",
            data_bytes=plan.data_bytes or DEFAULT_DATA_BYTES,
            metadata_bytes=plan.metadata_bytes or DEFAULT_METADATA_BYTES,
            directory=str(plan.directory),
        )

    def check(self) -> None:
        """Make sure that nothing of somebody else's is in the way.

        Raises:
            AlreadyExists: the name is taken, or a file is there.
            InvalidArgument: the directory is a file, or below one.
        """
        if self._dm.find(self.device) is not None:
            hint = "another pool, or something else, has that name: choose one with --pool"
            raise AlreadyExists("make device", node(self.device), hint=hint)
        for file, size in self._sizes():
            require_place_for(file, size)
            if file.exists():
                hint = "choose another directory with --dir, or remove it if it is of no use"
                raise AlreadyExists("make file", file, hint=hint)

    def make(self) -> None:
        """Make what is not there yet, and activate it.

        A file that is there is not emptied: it may be of a pool that is in use already.
        """
        record = self._record
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file, size in self._sizes():
            if not file.exists() or file.stat().st_size < size:
                self._say(f"make {file}, sparse, of {format_size(size)}")
                make_sparse(file, size)
        sync_directory(self._directory)
        wanted = record.data_bytes + record.metadata_bytes
        warn_of_small_disk(self._directory, wanted, what="pool")
        self.activate()

    def activate(self) -> bool:
        """Make the pool's device; return whether it was not there.

        Raises:
            DataLoss: a file is missing.
            FailedPrecondition: another device has its name, or the kernel refuses its metadata.
        """
        if active_pool(self._dm, self.device) is not None:
            self._require_ours()
            return False
        if self._dm.find(self.device) is not None:  # without table: of one who was killed
            self._require_ours()
            remove_device(self._dm, self.device)
        for file in (self.data, self.metadata):
            if not file.exists():
                hint = "is its disk mounted? If it is lost: `lamina devmapper teardown --force`"
                raise DataLoss("find the pool's file", file, hint=hint)
        self._say(f"activate pool {self.device}")
        with self.loops() as (data, metadata):
            self._activate(data.path, metadata.path)
        return True

    def deactivate(self) -> None:
        """Take the pool's device away, and with it the loop devices.

        Raises:
            FailedPrecondition: devices on it are in use.
        """
        remove_idle(self._dm, self.device)
        if self._dm.find(self.device) is not None:
            self._require_ours()
            self._say(f"deactivate pool {self.device}")
            remove_device(self._dm, self.device)

    def extend(self, data_bytes: int | None, metadata_bytes: int | None) -> Record:
        """Make the active pool larger, each where a size is given; return its new record."""
        sizes = {self.data: data_bytes, self.metadata: metadata_bytes}
        for file, size in sizes.items():
            if size is not None and size > file.stat().st_size:
                self._say(f"extend {file} to {format_size(size)}")
                make_sparse(file, size)
        with self.loops() as (data, metadata):
            for device in (data, metadata):
                take_over_size(device)
            self._dm.load(self.device, [self._target(data.path, metadata.path)])
            # Without flush, which would wait for room where the pool is full.
            self._dm.suspend(self.device, flush=False, freeze=False)
            self._dm.resume(self.device)
        return replace(
            self._record,
            data_bytes=data_bytes or self._record.data_bytes,
            metadata_bytes=metadata_bytes or self._record.metadata_bytes,
        )

    def remove(self) -> None:
        """Remove whatever of it is there; what is on it is lost."""
        self.deactivate()
        for file in self.files():
            if file.exists():
                self._say(f"remove {file}")
                file.unlink(missing_ok=True)
        if self._directory.exists():
            sync_directory(self._directory)

    def files(self) -> list[Path]:
        """Return its files, and those that repairs have left."""
        prefix = f"{self.metadata.name}."
        kept = [path for path in _children(self._directory) if path.name.startswith(prefix)]
        return [self.data, self.metadata, *kept]

    @contextmanager
    def loops(self) -> Iterator[tuple[LoopDevice, LoopDevice]]:
        """Have its data and its metadata as block devices for the body."""
        with ExitStack() as stack:
            yield (
                stack.enter_context(attached_directly(self.data)),
                stack.enter_context(attached_directly(self.metadata)),
            )

    def _sizes(self) -> tuple[tuple[Path, int], ...]:
        record = self._record
        return (self.metadata, record.metadata_bytes), (self.data, record.data_bytes)

    def _activate(self, data: str, metadata: str) -> None:
        try:
            self._dm.activate(self.device, [self._target(data, metadata)], uuid=_UUID + self.device)
        except OSError as error:
            raise FailedPrecondition(
                f"activate pool {self.device}: {error.strerror}",
                hint="dmesg says more; then `lamina devmapper check` and `... repair`",
            ) from error

    def _target(self, data: str, metadata: str) -> Target:
        return pool_table(self.data.stat().st_size, metadata=metadata, data=data)

    def _require_ours(self) -> None:
        info = self._dm.find(self.device)
        if info is not None and info.uuid != _UUID + self.device:
            hint = "something else has that name: remove it, or choose another with --pool"
            raise FailedPrecondition("use device", node(self.device), hint=hint)


def _children(directory: Path) -> list[Path]:
    return list(directory.iterdir()) if directory.is_dir() else []

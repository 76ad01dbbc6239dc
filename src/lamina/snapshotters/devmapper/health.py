"""Whether a pool can take more: its state, and what is to be done about it, in words."""

from __future__ import annotations

from typing import NamedTuple

from lamina.core.units import format_size
from lamina.errors import FailedPrecondition, ResourceExhausted
from lamina.linux.dm.thin import METADATA_BLOCK, PoolMode, PoolStatus

WARN_PERCENT = 80
_EXTEND = "extend the pool, or remove images and containers; see `lamina devmapper status`"


class Space(NamedTuple):
    """The data or the metadata of a pool: `used` of `total` blocks of `size` bytes.

    Some is kept free for what the snapshots that are there have yet to write: one `part`-th, at
    most `most` bytes.
    """

    what: str
    used: int
    total: int
    size: int
    part: int
    most: int

    @property
    def low(self) -> bool:
        """Whether no snapshot is to be added."""
        return self.total - self.used < min(self.total / self.part, self.most / self.size)

    @property
    def percent(self) -> float:
        """How much is used."""
        return 100 * self.used / self.total if self.total else 0.0

    def __str__(self) -> str:
        free = format_size((self.total - self.used) * self.size)
        return f"{self.what} {self.percent:.1f}% used, {free} free"


class Health:
    """A pool's state at one moment.

    Args:
        name: the pool's.
        status: what the kernel says.
        block_bytes: the size of its data blocks.
    """

    def __init__(self, name: str, status: PoolStatus, *, block_bytes: int) -> None:
        self._name = name
        self._status = status
        # A pool must never run out of metadata: it has to be repaired then.
        self._spaces = (
            Space("data", status.used_data, status.total_data, block_bytes, 20, 4 << 30),
            Space("metadata", status.used_metadata, status.total_metadata, METADATA_BLOCK,
                  10, 64 << 20),
        )  # fmt: skip

    def __str__(self) -> str:
        return ", ".join(map(str, self._spaces)) if self._status.total_data else "nothing is known"

    @property
    def filling(self) -> bool:
        """Whether it is time to say so."""
        return any(space.percent >= WARN_PERCENT for space in self._spaces)

    def require_room(self) -> None:
        """Make sure that the pool can take another snapshot.

        Raises:
            ResourceExhausted: little is left of its data or its metadata.
            FailedPrecondition: see `require_writable`.
        """
        self.require_writable()
        low = [space.what for space in self._spaces if space.low]
        if low:
            what = f"make a snapshot in pool {self._name}, which is low on {' and '.join(low)}"
            raise ResourceExhausted(f"{what}: {self}", hint=_EXTEND)

    def require_writable(self) -> None:
        """Make sure that the pool takes what is written to it.

        Raises:
            ResourceExhausted: it is out of data.
            FailedPrecondition: it has failed, or takes no changes.
        """
        mode = self._status.mode
        what = f"write to pool {self._name}"
        if mode == PoolMode.OUT_OF_DATA_SPACE:
            raise ResourceExhausted(f"{what}, which is out of data: {self}", hint=_EXTEND)
        if self._status.needs_check:
            state, first = "whose metadata needs a check", "stop what uses it"
        elif mode == PoolMode.READ_ONLY:
            state, first = "which is read-only", "see dmesg"
        elif mode != PoolMode.READ_WRITE:
            state, first = "which has failed", "see dmesg"
        else:
            return
        hint = f"{first}; then `lamina devmapper check` and `lamina devmapper repair`"
        raise FailedPrecondition(f"{what}, {state}: {self}", hint=hint)

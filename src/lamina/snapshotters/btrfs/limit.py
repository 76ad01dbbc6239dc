"""The label that bounds what a snapshot may grow by, kept with quotas."""

from __future__ import annotations

from lamina.core.labels import MAX_SIZE
from lamina.errors import FailedPrecondition
from lamina.linux.btrfs_quota import QuotaMode, quota_group, quota_mode, set_quota_limit


def require_quotas(fd: int, place: object) -> QuotaMode:
    """Return how the filesystem counts.

    Raises:
        FailedPrecondition: it does not.
    """
    mode = quota_mode(fd)
    if mode == QuotaMode.OFF:
        raise FailedPrecondition(
            f"use label {MAX_SIZE}: quotas are off on the btrfs of", place,
            hint=f"btrfs quota enable --simple {place} (Linux >= 6.7), or without --simple",
        )  # fmt: skip
    return mode


def set_limit(fd: int, subvolume: int, size: int, *, mode: QuotaMode, parent: int | None) -> None:
    """Let a new subvolume grow by `size` bytes beyond its parent.

    Full quotas count what it shares with the parent as well, simple ones only what it writes.
    """
    base = 0
    if mode == QuotaMode.FULL and parent is not None:
        group = quota_group(fd, parent)
        base = group.referenced if group else 0
    set_quota_limit(fd, subvolume, base + size)

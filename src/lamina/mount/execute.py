"""Carry out a plan, and take it back."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from lamina.core.mount import Mount
from lamina.errors import LaminaError
from lamina.linux.mountapi import MNT_DETACH
from lamina.mount.failure import failure
from lamina.mount.operations import Operation
from lamina.mount.plan import plan
from lamina.mount.target import opened_target, target_path
from lamina.mount.unmounting import unmount

log = logging.getLogger(__name__)


def mount_all(mounts: Iterable[Mount], target: Path) -> None:
    """Mount everything in order on `target`, each at its own `target` inside it.

    Targets must exist; links in `Mount.target` are resolved as if `target` were `/`. After an
    error nothing stays mounted.

    Raises:
        LaminaError: of the class that fits what the kernel said; the text has the operation, the
            target and the kernel's words.
    """
    operations = plan(mounts)
    done: list[Operation] = []
    try:
        for operation in operations:
            _execute(operation, target)
            done.append(operation)
    except BaseException:
        _take_back(done, target)
        raise


def unmount_all(mounts: Sequence[Mount], target: Path) -> None:
    """Unmount what `mount_all` mounted, the last first; what is not mounted is passed over.

    Whatever is topmost on a target goes, so call it once for each `mount_all`.

    Raises:
        FailedPrecondition: something is in use; the mounts before it in the list stay.
    """
    for operation in reversed(plan(mounts)):
        if operation.adds_mount:
            _undo(operation, target)


def _execute(operation: Operation, root: Path) -> None:
    where = _where(operation, root)
    log.debug("%s on %s", operation.describe(), where)
    try:
        with opened_target(root, operation.mount.target) as target_fd:
            operation.execute(target_fd)
    except OSError as error:
        raise failure(error, f"{operation.describe()} on {where}") from error


def _undo(operation: Operation, root: Path, *, flags: int = 0) -> None:
    where = _where(operation, root)
    try:
        # The root is not opened: the subvolume that is mounted there may have been deleted.
        below = operation.mount.target
        path = target_path(root, below) if below else str(root.resolve())
    except FileNotFoundError:
        return
    except OSError as error:
        raise failure(error, f"unmount {where}") from error
    unmount(path, flags=flags)


def _take_back(done: list[Operation], root: Path) -> None:
    """Unmount after an error; the error itself must reach the caller, so nothing is raised."""
    for operation in reversed(done):
        if operation.adds_mount:
            _undo_for_sure(operation, root)


def _undo_for_sure(operation: Operation, root: Path) -> None:
    try:
        _undo(operation, root)
        return
    except LaminaError as error:
        log.warning("detaching what cannot be unmounted: %s", error)
    try:
        _undo(operation, root, flags=MNT_DETACH)
    except LaminaError as error:
        log.warning("a mount stays: %s", error)


def _where(operation: Operation, root: Path) -> str:
    below = operation.mount.target
    return f"{root}/{below.lstrip('/')}" if below else str(root)

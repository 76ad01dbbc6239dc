"""Whether this kernel has aufs, found out by mounting one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from lamina.errors import SnapshotterSkipped, ToolError
from lamina.linux import mountapi as api
from lamina.snapshotters.tree import remove_tree

XINO = "/dev/shm/aufs.xino"
"""Where aufs keeps its table of inode numbers; it may not be on a branch's filesystem."""
_MODULES = Path("/lib/modules")
_FIX = "install a kernel with aufs, which no distribution has any more; or use overlayfs"


def require_aufs(directory: Path) -> bool:
    """Mount an aufs in that directory, and return whether it takes the option `dirperm1`.

    Where the kernel has none, its module is loaded first.

    Raises:
        SnapshotterSkipped: there is none, or it cannot be mounted; says which.
        OSError: the directory cannot be written to.
    """
    place = directory / f".trial-{os.getpid()}-{os.urandom(4).hex()}"
    place.mkdir(mode=0o700)
    try:
        (place / "branch").mkdir()
        (place / "at").mkdir()
        return _mounts(place)
    finally:
        remove_tree(place)


def _mounts(place: Path) -> bool:
    error = _mount(place, "dirperm1")
    if error is not None and error.errno == errno.ENODEV:
        _load_module()
        error = _mount(place, "dirperm1")
    if error is None:
        return True
    if error.errno == errno.EINVAL:  # an aufs older than the option, or another fault
        error = _mount(place)
        if error is None:
            return False
    raise SnapshotterSkipped("aufs", reason=f"mounting an aufs fails: {error.strerror}", fix=_FIX)


def _mount(place: Path, *more: str) -> OSError | None:
    point = place / "at"
    data = ",".join((f"br:{place}/branch=rw", f"xino={XINO}", *more))
    try:
        api.mount("none", point, "aufs", 0, data)
    except OSError as error:
        return error
    api.umount2(point, api.MNT_DETACH)
    return None


def _load_module() -> None:
    release = os.uname().release
    modules = _MODULES / release
    if not modules.is_dir():
        reason = f"this kernel ({release}) has no aufs, and no modules in {modules}"
        raise SnapshotterSkipped("aufs", reason=reason, fix=_FIX)
    from lamina.tools.modprobe import modprobe  # starting programs takes long to import

    try:
        modprobe("aufs")
    except ToolError as error:
        said = (error.stderr.strip().splitlines() or ["it says nothing"])[-1]
        reason = f"this kernel ({release}) has no aufs, and modprobe fails: {said}"
        raise SnapshotterSkipped("aufs", reason=reason, fix=_FIX) from error

"""What kernel and filesystem allow drivers to do that stack directories by the kernel's overlay."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from lamina.core.driver import Ability
from lamina.errors import FailedPrecondition
from lamina.linux.dirent import types_are_known
from lamina.linux.userns import in_user_namespace

INDEX_PARAMETER = Path("/sys/module/overlay/parameters/index")
_IDMAPPED_LAYERS = (5, 19)
"""The kernel that takes idmapped mounts as lower directories."""


def require_d_type(root: Path) -> None:
    """Check that the filesystem tells a directory entry's type, which overlay relies on.

    Raises:
        FailedPrecondition: it does not.
    """
    if not types_are_known(root):
        raise FailedPrecondition(
            f"use {root} for overlay mounts: its filesystem does not support d_type",
            hint="if it is xfs, make it anew with `mkfs.xfs -n ftype=1`; or move the root",
        )


def overlay_options(root: Path, configured: Iterable[str]) -> tuple[str, ...]:
    """Return the options of every overlay mount: those configured and those needed here."""
    options = tuple(configured)
    names = {option.partition("=")[0] for option in options}
    needed = []
    if "userxattr" not in names and in_user_namespace() and _can_use_userxattr(root):
        needed.append("userxattr")
    if "index" not in names and INDEX_PARAMETER.exists():
        # A kernel that defaults to index=on refuses an upper directory that has been moved.
        needed.append("index=off")
    return (*options, *needed)


def _can_use_userxattr(root: Path) -> bool:
    from lamina.linux import probes  # only user namespaces pay for it

    return probes.overlay_userxattr(root) is None


def abilities(*, slow_chown: bool) -> frozenset[Ability]:
    """Return what drivers on this kernel can do."""
    found = set()
    unprivileged = in_user_namespace()
    if not unprivileged:
        found.add(Ability.REBASE)  # whiteouts in what is to be rebased are device nodes
        if _kernel() >= _IDMAPPED_LAYERS:
            found.add(Ability.REMAP_IDS)
    if not slow_chown:
        found.add(Ability.ONLY_REMAP_IDS)
    return frozenset(found)


def _kernel() -> tuple[int, int]:
    found = re.match(r"([0-9]+)\.([0-9]+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)

"""`lost+found`, which mkfs makes and no container should see; e2fsck makes one when it needs it."""

from __future__ import annotations

import contextlib
import os

_NAME = "lost+found"


def has_lost_and_found(root: int) -> bool:
    """Tell whether the filesystem with that root directory has one."""
    try:
        os.stat(_NAME, dir_fd=root, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def remove_lost_and_found(root: int) -> None:
    """Remove it, where there is one: only the ext family has it.

    Raises:
        OSError: ENOTEMPTY: e2fsck has put files there.
    """
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(_NAME, dir_fd=root)

"""Deletes subvolumes together with those that a container has made in them.

Nested ones are found in the root tree and opened by their number: no path is followed that a
container could bend meanwhile, and none has to be readable, mounted or short.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lamina.core.cancel import check_cancelled
from lamina.errors import FailedPrecondition
from lamina.linux.btrfs import (
    destroy_subvolume,
    is_subvolume,
    set_read_only,
    subvolume_id,
)
from lamina.linux.btrfs_quota import remove_quota_group
from lamina.linux.btrfs_tree import Nested, nested_in, open_inode
from lamina.snapshotters.tree import remove_tree_in, unprotect

TRIES = 5
"""How often nested subvolumes are listed again, should a container make more of them meanwhile."""
_GONE = frozenset({errno.ENOENT, errno.ESTALE})
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def destroy_all(dir_fd: int, path: Path) -> None:
    """Delete the subvolume `path` in the open directory, with what is nested in it, if it is there.

    A plain directory of that name is removed too.

    Raises:
        FailedPrecondition: new subvolumes are being made in it all the time.
        OSError: EBUSY: something is mounted on it.
    """
    try:
        fd = os.open(path.name, _DIRECTORY, dir_fd=dir_fd)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        os.unlink(path.name, dir_fd=dir_fd)
        return
    try:
        if not is_subvolume(fd):
            remove_tree_in(dir_fd, path)
            return
        id = subvolume_id(fd)
        for _ in range(TRIES):
            if _is_destroyed(dir_fd, path.name, fd):
                remove_quota_group(dir_fd, id)
                return
            _destroy_nested(fd, id)
    finally:
        os.close(fd)
    hint = "stop the container that makes them"
    raise FailedPrecondition("delete subvolume in which others are being made", path, hint=hint)


def _is_destroyed(dir_fd: int, name: str | bytes, fd: int) -> bool:
    """Delete a subvolume, open as `fd`; False where there are others in it."""
    try:
        try:
            destroy_subvolume(dir_fd, name)
        except PermissionError:  # the one protected itself, or the directory that it is in
            set_read_only(fd, False)
            unprotect(dir_fd, os.fsdecode(name))
            destroy_subvolume(dir_fd, name)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            return False
        if error.errno not in _GONE:
            raise
    return True


def _destroy_nested(fd: int, id: int) -> None:
    """Delete all that are below a subvolume, the innermost first."""
    found = nested_in(fd, id)
    for nested in found:  # grows
        check_cancelled()
        found.extend(nested_in(fd, nested.id))
    for nested in reversed(found):
        try:
            _destroy_one(fd, nested)
        except OSError as error:
            if error.errno not in _GONE:
                raise


def _destroy_one(fd: int, nested: Nested) -> None:
    with _opened(fd, nested.parent) as parent:
        set_read_only(parent, False)
    with _opened(fd, nested.parent, nested.dir_id) as directory, _opened(fd, nested.id) as own:
        if _is_destroyed(directory, nested.name, own):
            remove_quota_group(fd, nested.id)


@contextmanager
def _opened(fd: int, tree: int, *inode: int) -> Iterator[int]:
    opened = open_inode(fd, tree, *inode)
    try:
        yield opened
    finally:
        os.close(opened)

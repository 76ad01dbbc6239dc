"""Images mounted on directories of the user's choice, for longer than any process.

The snapshot has the directory's absolute path as its key: a View, or an Active one for changes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lamina.core.mount import Mount
from lamina.core.snapshot import Kind
from lamina.errors import AlreadyExists, InvalidArgument, NotFound
from lamina.mount import mount_all, unmount_topmost

if TYPE_CHECKING:
    from lamina.core.digest import Digest
    from lamina.core.snapshot import Snapshotter
    from lamina.images.operation import Options
    from lamina.store import Store


def mount_image(
    store: Store,
    ref: str,
    target: Path,
    *,
    writable: bool = False,
    snapshotter: str | None = None,
    options: Options | None = None,
) -> Digest | None:
    """Mount an image's root file system on a directory; return its chain id. Needs root.

    The snapshot of an earlier mount there is mounted again, with the changes that were made.

    Args:
        store: has the image.
        ref: the image; it is unpacked if need be.
        target: an existing directory.
        writable: make changes possible; they stay in the snapshot.
        snapshotter: which one; None for the default.
        options: for which platform.

    Raises:
        NotFound: there is no such image, or no such directory.
        AlreadyExists: the directory has a snapshot of another image, or of the other kind.
        InvalidArgument: it is the machine's own root directory.
    """
    _refuse_root_directory(target)
    chain_id = store.unpack(ref, snapshotter, options=options)
    engine = store.snapshotter(snapshotter)
    key = str(target.absolute())
    try:
        mounts = (engine.prepare if writable else engine.view)(key, chain_id or "")
    except AlreadyExists:
        mount_all(_earlier(engine, key, chain_id or "", writable=writable), target)
        return chain_id
    try:
        mount_all(mounts, target)
    except BaseException:
        engine.remove(key)
        raise
    return chain_id


def unmount_image(
    store: Store, target: Path, *, remove: bool = False, snapshotter: str | None = None
) -> None:
    """Take off a directory what `mount_image` has mounted there, and what is mounted in it.

    Args:
        store: has the snapshot.
        target: the directory; nothing mounted there is no error.
        remove: remove the snapshot as well, with what was changed in it.
        snapshotter: which one has it; None for the default.

    Raises:
        FailedPrecondition: it is in use.
        NotFound: there is no snapshot of it.
        InvalidArgument: it is the machine's own root directory.
    """
    _refuse_root_directory(target)
    engine = store.snapshotter(snapshotter)
    key = str(target.absolute())
    # First of all, so that nothing but what `mount_image` has mounted is ever unmounted.
    _require_snapshot(engine, key)
    unmount_topmost(target)
    if remove:
        engine.remove(key)
        store.collect()  # layers of an image that was removed meanwhile


def _require_snapshot(engine: Snapshotter, key: str) -> None:
    try:
        engine.stat(key)
    except NotFound as error:
        error.hint = "name the snapshotter with which it was mounted: --snapshotter NAME"
        raise


def _refuse_root_directory(target: Path) -> None:
    if target.resolve() == Path("/"):  # nobody would see the image there, nor get it off again
        raise InvalidArgument("mount point", target, hint="name another directory")


def _earlier(snapshotter: Snapshotter, key: str, parent: str, *, writable: bool) -> list[Mount]:
    found = snapshotter.stat(key)
    if found.parent == parent and found.kind == (Kind.ACTIVE if writable else Kind.VIEW):
        return snapshotter.mounts(key)
    hint = f"it is of another image or kind; remove it: lamina images unmount --rm {key}"
    raise AlreadyExists("mount on snapshot", key, hint=hint)

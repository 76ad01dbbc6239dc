"""A list of mounts -> the operations that carry it out, checked before anything is mounted."""

from __future__ import annotations

from collections.abc import Iterable

from lamina.core.mount import Mount
from lamina.errors import InvalidArgument
from lamina.linux import mountapi as api
from lamina.mount.aufs import Aufs
from lamina.mount.operations import Bind, Filesystem, Fuse, Operation, Remount
from lamina.mount.options import MountOptions, parse_options
from lamina.mount.overlay import Overlay


def plan(mounts: Iterable[Mount]) -> list[Operation]:
    """Return one operation for each mount, in order.

    Raises:
        InvalidArgument: a mount that can never work, whatever is on the disk.
        ResourceExhausted: more layers than the kernel takes.
    """
    return [plan_one(mount) for mount in mounts]


def plan_one(mount: Mount) -> Operation:
    """Return the operation for one mount."""
    if "/" in mount.type:
        raise InvalidArgument(
            f"mount {mount.type} {mount.source}: the type names transformations",
            hint="let containerd's mount manager apply them first",
        )
    if mount.type.startswith(("fuse.", "fuse3.")):
        return Fuse(mount, MountOptions())
    options = parse_options(mount)
    if options.flags & api.MS_REMOUNT:
        return Remount(mount, options)
    if options.flags & api.MS_BIND or mount.type in {"bind", "rbind"}:
        return _bind(mount, options)
    if mount.type == "overlay":
        return Overlay(mount, options)
    if mount.type == "aufs":
        return _checked(Aufs(mount, options))
    return _checked(Filesystem(mount, options))


def _bind(mount: Mount, options: MountOptions) -> Bind:
    if options.data or options.loop or options.direct_io:
        words = [*options.data, *(["loop"] if options.loop else [])]
        raise InvalidArgument(
            f"bind {mount.source}: a bind mount has no filesystem of its own for the options "
            f"{','.join(words) or 'direct-io'}"
        )
    return Bind(mount, options)


def _checked(filesystem: Filesystem) -> Filesystem:
    mount, options = filesystem.mount, filesystem.options
    if options.direct_io and not options.loop:
        raise InvalidArgument(f"mount {mount.type} {mount.source}: direct-io needs the option loop")
    if (options.uidmap or options.propagation) and filesystem.needs_mount2(mount.source):
        raise InvalidArgument(
            f"mount {mount.type} {mount.source}: an option of more than "
            f"{api.CONFIG_STRING_MAX} bytes excludes id maps and propagation"
        )
    return filesystem

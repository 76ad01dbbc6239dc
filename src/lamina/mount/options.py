"""Mount options as text -> what they ask of the kernel. Pure."""

from __future__ import annotations

from typing import NamedTuple

from lamina.core.mount import Mount, split_options
from lamina.errors import InvalidArgument
from lamina.linux import mountapi as api

_SETS = {
    "bind": api.MS_BIND,
    "rbind": api.MS_BIND | api.MS_REC,
    "dirsync": api.MS_DIRSYNC,
    "mand": api.MS_MANDLOCK,
    "noatime": api.MS_NOATIME,
    "nodev": api.MS_NODEV,
    "nodiratime": api.MS_NODIRATIME,
    "noexec": api.MS_NOEXEC,
    "nosuid": api.MS_NOSUID,
    "relatime": api.MS_RELATIME,
    "remount": api.MS_REMOUNT,
    "ro": api.MS_RDONLY,
    "strictatime": api.MS_STRICTATIME,
    "sync": api.MS_SYNCHRONOUS,
    "defaults": 0,
}
_CLEARS = {
    "async": api.MS_SYNCHRONOUS,
    "atime": api.MS_NOATIME,
    "dev": api.MS_NODEV,
    "diratime": api.MS_NODIRATIME,
    "exec": api.MS_NOEXEC,
    "nomand": api.MS_MANDLOCK,
    "norelatime": api.MS_RELATIME,
    "nostrictatime": api.MS_STRICTATIME,
    "rw": api.MS_RDONLY,
    "suid": api.MS_NOSUID,
}
_PROPAGATION = {
    "private": api.MS_PRIVATE,
    "shared": api.MS_SHARED,
    "slave": api.MS_SLAVE,
    "unbindable": api.MS_UNBINDABLE,
}
_ATTRIBUTES = {
    api.MS_RDONLY: api.MOUNT_ATTR_RDONLY,
    api.MS_NOSUID: api.MOUNT_ATTR_NOSUID,
    api.MS_NODEV: api.MOUNT_ATTR_NODEV,
    api.MS_NOEXEC: api.MOUNT_ATTR_NOEXEC,
    api.MS_NOATIME: api.MOUNT_ATTR_NOATIME,
    api.MS_STRICTATIME: api.MOUNT_ATTR_STRICTATIME,
    api.MS_NODIRATIME: api.MOUNT_ATTR_NODIRATIME,
}
_ATIME_MODES = api.MS_NOATIME | api.MS_RELATIME | api.MS_STRICTATIME


class MountOptions(NamedTuple):
    """What the options of one mount ask for.

    Attributes:
        flags: MS_* to set.
        cleared: MS_* that were named to be off (`rw`, `exec`, ...), for remounts.
        data: options of the filesystem itself, one each, escapes kept as given.
        loop: the source is a file that needs a loop device.
        direct_io: that loop device bypasses the page cache.
        uidmap: `container:host:size[,...]`; set together with `gidmap` or not at all.
        gidmap: likewise.
        propagation: MS_PRIVATE, MS_SHARED, MS_SLAVE, MS_UNBINDABLE or 0 (leave as it is).
        propagation_recursive: for everything below as well (`rprivate`, ...).
    """

    flags: int = 0
    cleared: int = 0
    data: tuple[str, ...] = ()
    loop: bool = False
    direct_io: bool = False
    uidmap: str = ""
    gidmap: str = ""
    propagation: int = 0
    propagation_recursive: bool = False

    @property
    def attributes(self) -> int:
        """The MOUNT_ATTR_* that the flags mean for the mount itself."""
        return _attributes(self.flags)

    @property
    def cleared_attributes(self) -> int:
        """The MOUNT_ATTR_* to switch off when an existing mount is changed."""
        cleared = _attributes(self.cleared & ~_ATIME_MODES)
        if (self.flags | self.cleared) & _ATIME_MODES:
            cleared |= api.MOUNT_ATTR__ATIME
        return cleared

    def value(self, key: str) -> str | None:
        """Return the value of the filesystem's option `key=value`; None where it has none."""
        prefix = f"{key}="
        return next((o[len(prefix) :] for o in self.data if o.startswith(prefix)), None)


def parse_options(mount: Mount) -> MountOptions:
    """Sort out the options of a mount.

    What is no flag, no propagation and none of our own words is data for the filesystem.

    Raises:
        InvalidArgument: an unprocessed `X-containerd.` option, or one id map without the other.
    """
    flags = cleared = propagation = 0
    recursive = False
    own: dict[str, str] = {}
    data: list[str] = []
    for option in split_options(mount.options):
        key, _, value = option.partition("=")
        if option in _SETS:
            flags = flags & ~_rivals(option) | _SETS[option]
            cleared &= ~_SETS[option]
        elif option in _CLEARS:
            flags &= ~_CLEARS[option]
            cleared |= _CLEARS[option]
        elif option.removeprefix("r") in _PROPAGATION:
            propagation = _PROPAGATION[option.removeprefix("r")]
            recursive = option.startswith("r")
        elif option in {"loop", "direct-io"} or key in {"uidmap", "gidmap"}:
            own[key] = value
        elif option.startswith("X-containerd."):
            raise InvalidArgument(
                f"mount {mount.source}: option {option} is for containerd's mount manager",
                hint="activate the mount there first, or leave the option out",
            )
        else:
            data.append(option)
    uidmap, gidmap = own.get("uidmap", ""), own.get("gidmap", "")
    if bool(uidmap) != bool(gidmap) or len({"uidmap", "gidmap"} & own.keys()) == 1:
        raise InvalidArgument(
            f"mount {mount.source}: uidmap= and gidmap= only work together",
            hint="give both, or neither",
        )
    return MountOptions(
        flags=flags,
        cleared=cleared,
        data=tuple(data),
        loop="loop" in own,
        direct_io="direct-io" in own,
        uidmap=uidmap,
        gidmap=gidmap,
        propagation=propagation,
        propagation_recursive=recursive,
    )


def _rivals(option: str) -> int:
    return _ATIME_MODES if _SETS[option] & _ATIME_MODES else 0


def _attributes(flags: int) -> int:
    return sum(attribute for flag, attribute in _ATTRIBUTES.items() if flags & flag)

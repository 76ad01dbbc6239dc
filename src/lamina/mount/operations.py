"""What each kind of mount does to the kernel: bind, filesystem, remount, FUSE program.

A mount is made detached, dressed with its attributes, and only then attached: it is never visible
half done, and what it covers is an open descriptor, not a path that may change.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar

from lamina.core.mount import Mount, split_option, unescape_option
from lamina.errors import Internal, LaminaError
from lamina.linux import mountapi as api
from lamina.linux.mountinfo import mounts_at_or_below
from lamina.mount.idmap import mapped_namespace
from lamina.mount.options import MountOptions
from lamina.mount.target import path_of

_SUPERBLOCK_FLAGS = {
    api.MS_RDONLY: "ro",
    api.MS_SYNCHRONOUS: "sync",
    api.MS_DIRSYNC: "dirsync",
    api.MS_MANDLOCK: "mand",
}


class Operation(ABC):
    """One step of a plan: a mount value with its options sorted out.

    A plain class, because dataclasses take milliseconds to make and each command pays for that.

    Attributes:
        mount: the value that asked for it.
        options: what its options mean.
        adds_mount: whether there is something to unmount afterwards.
    """

    __slots__ = ("mount", "options")

    adds_mount: ClassVar[bool] = True

    def __init__(self, mount: Mount, options: MountOptions) -> None:
        self.mount = mount
        self.options = options

    def describe(self) -> str:
        """Say in a few words what `execute` does, without the target."""
        return f"mount {self.mount.type} {self.mount.source}"

    @abstractmethod
    def execute(self, target_fd: int) -> None:
        """Do it on an open (O_PATH) target; leaves nothing behind when it raises OSError."""


class Bind(Operation):
    """A part of the file tree at a second place.

    With `rbind`, all options hold for the mounts below as well: read-only means that nothing in
    there can be written.
    """

    def describe(self) -> str:
        """Name the source."""
        return f"bind {self.mount.source}"

    def execute(self, target_fd: int) -> None:
        """Copy the mount, dress the copy, attach it."""
        recursive = self.mount.type == "rbind" or bool(self.options.flags & api.MS_REC)
        with closing(api.open_tree(self.mount.source, recursive=recursive)) as fd:
            atime = self.options.cleared_attributes & api.MOUNT_ATTR__ATIME
            if self.options.attributes or atime:
                api.mount_setattr(fd, set=self.options.attributes, clear=atime, recursive=recursive)
            attach(fd, target_fd, self.options, recursive=recursive)


class Filesystem(Operation):
    """A filesystem from a device, a file or nothing, through the kernel's own driver."""

    def describe(self) -> str:
        """Name type and source."""
        return super().describe() + (" through a loop device" if self.options.loop else "")

    def execute(self, target_fd: int) -> None:
        """Configure, create and attach the filesystem."""
        with ExitStack() as stack:
            source = self.mount.source
            if self.options.loop:
                source = stack.enter_context(self._loop_device())
            if self.needs_mount2(source):
                self._mount2(source, target_fd)
                return
            fd = stack.enter_context(closing(self._created(source)))
            attach(fd, target_fd, self.options)

    def needs_mount2(self, source: str) -> bool:
        """Tell whether a string is too long for fsconfig(2); mount(2) takes a page in all."""
        strings = [source, *(option.partition("=")[2] for option in self.options.data)]
        return max(len(os.fsencode(text)) for text in strings) > api.CONFIG_STRING_MAX

    @contextmanager
    def _loop_device(self) -> Iterator[str]:
        from lamina.linux import loop  # only mounts of files pay for it

        read_only = bool(self.options.flags & api.MS_RDONLY)
        file = self.mount.source
        with loop.attached(file, read_only=read_only, direct_io=self.options.direct_io) as device:
            yield device.path

    def _created(self, source: str) -> int:
        flags = self.options.flags
        try:
            return self._configured(source, flags)
        except OSError as error:
            if error.errno != errno.EBUSY or not flags & api.MS_RDONLY:
                raise
        # The device is mounted already, writable: read-only is this mount alone.
        return self._configured(source, flags & ~api.MS_RDONLY)

    def _configured(self, source: str, flags: int) -> int:
        with closing(api.fsopen(self.mount.type)) as fs:
            if source:
                api.fsconfig_string(fs, "source", source)
            configure(fs, self.options.data, flags)
            api.fsconfig_create(fs)
            return api.fsmount(fs, self.options.attributes)

    def _mount2(self, source: str, target_fd: int) -> None:
        data = ",".join(self.options.data)
        api.mount(source, fd_path(target_fd), self.mount.type, self.options.flags, data)


class Remount(Operation):
    """Other options for what is mounted on the target already."""

    __slots__ = ()

    adds_mount = False

    def describe(self) -> str:
        """Name the options."""
        return f"remount with {','.join(self.mount.options)}"

    def execute(self, target_fd: int) -> None:
        """Change the mount alone (`bind`), or its filesystem as well."""
        options = self.options
        if options.flags & api.MS_BIND:
            api.mount_setattr(
                target_fd,
                set=options.attributes,
                clear=options.cleared_attributes,
                recursive=bool(options.flags & api.MS_REC),
            )
        else:
            source = self.mount.source or "none"
            data = ",".join(options.data)
            api.mount(source, fd_path(target_fd), self.mount.type or "none", options.flags, data)
        set_propagation(target_fd, options)


class Fuse(Operation):
    """A filesystem served by a program of its own (`fuse.NAME`, `fuse3.NAME`)."""

    def describe(self) -> str:
        """Name program and source."""
        return f"mount {self.mount.type} {self.mount.source}"

    def execute(self, target_fd: int) -> None:
        """Run the helper; the program goes on serving when it returns."""
        from lamina.tools.fuse import mount_fuse  # only these mounts start processes

        family, _, program = self.mount.type.partition(".")
        helper = "mount.fuse3" if family == "fuse3" else "mount.fuse"
        # The helper resolves its argument to a path anyway, so a descriptor would not help.
        path = path_of(target_fd)
        before = len(mounts_at_or_below(path))
        try:
            mount_fuse(helper, program, self.mount.source, path, self.mount.options)
            self._require_mount(path, before)
        except LaminaError as error:
            if len(mounts_at_or_below(path)) > before:
                api.umount2(path, api.MNT_DETACH)
            error.what = f"{self.describe()} on {path}: {error.what}"
            if not error.hint and (missing := self._missing()):
                error.hint = f"there is no directory {missing}"
            raise

    def _missing(self) -> str:
        """Return a directory that an overlay of that kind needs and that is not there, or ""."""
        names = ("lowerdir", "upperdir", "workdir")
        values = [self.mount.option(name) for name in names]
        paths = [path for value in values if value for path in split_option(value, ":")]
        return next((path for path in paths if not Path(unescape_option(path)).is_dir()), "")

    def _require_mount(self, path: str, before: int) -> None:
        """Check that there is one: a program that forks too early hides its failure."""
        if len(mounts_at_or_below(path)) <= before:
            raise Internal("the program ended without an error, and nothing is mounted")


def configure(fs: int, data: tuple[str, ...], flags: int) -> None:
    """Hand the options of a filesystem, and those MS_* that concern it, to its configuration."""
    for option in data:
        key, separator, value = option.partition("=")
        if not separator:
            api.fsconfig_flag(fs, key)
            continue
        if len(os.fsencode(value)) > api.CONFIG_STRING_MAX:
            text = f"the option {key} has more than {api.CONFIG_STRING_MAX} bytes"
            raise OSError(errno.ENAMETOOLONG, text)
        api.fsconfig_string(fs, key, value)
    for flag, name in _SUPERBLOCK_FLAGS.items():
        if flags & flag:
            api.fsconfig_flag(fs, name)


def attach(
    mount_fd: int, target_fd: int, options: MountOptions, *, recursive: bool = False
) -> None:
    """Give a detached mount its id maps and its propagation, then put it on the target."""
    if options.uidmap:
        with mapped_namespace(options.uidmap, options.gidmap) as userns:
            api.mount_setattr(mount_fd, userns_fd=userns, recursive=recursive)
    api.move_mount(mount_fd, target_fd)
    settle(mount_fd, options)


def settle(mount_fd: int, options: MountOptions) -> None:
    """Set the propagation of a mount just attached, which attaching may have changed.

    Where that fails the mount is taken off again.
    """
    try:
        set_propagation(mount_fd, options)
    except BaseException:
        api.umount2(fd_path(mount_fd), api.MNT_DETACH)
        raise


def set_propagation(mount_fd: int, options: MountOptions) -> None:
    """Set how mounts and unmounts below spread to other copies of this mount."""
    if options.propagation:
        recursive = options.propagation_recursive
        api.mount_setattr(mount_fd, propagation=options.propagation, recursive=recursive)


@contextmanager
def closing(fd: int) -> Iterator[int]:
    """Close a descriptor at the end of the body."""
    try:
        yield fd
    finally:
        os.close(fd)


def fd_path(fd: int) -> str:
    """Return a path that means the open file itself, whatever its name is by now."""
    return f"/proc/self/fd/{fd}"

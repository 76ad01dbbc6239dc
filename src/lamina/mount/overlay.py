"""Overlay mounts: up to 500 lower directories, and id-mapped ones.

mount(2) takes one page of options. What does not fit is named relative to the directory that all
layers lie in, from a thread with that current directory; what does not fit even then, by links with
the shortest names there are, in a tmpfs that is attached nowhere. Other than `lowerdir+` of
fsconfig(2), which came with Linux 6.7, this works on every kernel.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath

from lamina.core.mount import Mount, split_option, unescape_option
from lamina.errors import InvalidArgument, ResourceExhausted
from lamina.linux import mountapi as api
from lamina.linux.directory import call_in_directory
from lamina.mount.idmap import mapped_namespace
from lamina.mount.operations import Operation, closing, fd_path, settle
from lamina.mount.options import MountOptions
from lamina.mount.target import path_of

MAX_LOWER_DIRECTORIES = 500
"""OVL_MAX_STACK of the kernel."""

_LOWERDIR = "lowerdir="
_PATH_ONLY = os.O_PATH | os.O_CLOEXEC


class Overlay(Operation):
    r"""One overlay mount.

    Attributes:
        lower: the lower directories, topmost first, with the escapes of the option `lowerdir`
            (`\:`, `\,`, `\\`) left in.
        data: all other options of the filesystem.

    Raises:
        InvalidArgument: there is no lower directory, or none could carry the id maps.
        ResourceExhausted: there are more lower directories than the kernel takes.
    """

    __slots__ = ("data", "lower")

    def __init__(self, mount: Mount, options: MountOptions) -> None:
        super().__init__(mount, options)
        value = options.value("lowerdir")
        if not value:
            raise InvalidArgument("mount overlay: it needs the option lowerdir=")
        self.lower = tuple(split_option(value, ":"))
        self.data = tuple(option for option in options.data if not option.startswith(_LOWERDIR))
        if len(self.lower) > MAX_LOWER_DIRECTORIES:
            raise ResourceExhausted(
                f"mount overlay: {len(self.lower)} lower directories, the kernel takes at most "
                f"{MAX_LOWER_DIRECTORIES}",
                hint="flatten the image or commit fewer layers",
            )
        if options.uidmap and self.base in {"/", "."}:
            raise InvalidArgument(
                "mount overlay: id maps need lower directories with a common parent other than /"
            )

    def describe(self) -> str:
        """Count the layers; 500 paths would help nobody."""
        upper = self.options.value("upperdir")
        count = len(self.lower)
        layers = f"{count} lower director{'y' if count == 1 else 'ies'}"
        return f"mount overlay of {layers}" + (f" under {upper}" if upper else "")

    @property
    def base(self) -> str:
        """The nearest directory, escapes left in, that all lower ones lie in; "." if relative."""
        if not all(path.startswith("/") for path in self.lower):
            return "."
        return os.path.commonpath([str(PurePosixPath(path).parent) for path in self.lower])

    def execute(self, target_fd: int) -> None:
        """Mount it by the simplest way that its layers allow."""
        try:
            if self.options.uidmap:
                self._mount_idmapped(target_fd)
            elif self._fits(self.lower):
                self._create(self.lower, target_fd)
            else:
                with closing(os.open(unescape_option(self.base), _PATH_ONLY)) as base:
                    self._create_below(base, target_fd)
        except FileNotFoundError as error:
            raise self._named(error) from error

    def _mount_idmapped(self, target_fd: int) -> None:
        """Show the lower directories with other owners; the upper one keeps what it stores.

        The kernel wants layers in attached mounts, so an id-mapped, read-only copy of their
        common directory sits on the target while the overlay is made, on one of its own layers.
        """
        first = unescape_option(self._relative()[0])
        with ExitStack() as stack:
            base = stack.enter_context(closing(self._idmapped_copy()))
            with _attached_for_a_while(base, target_fd):
                with closing(os.open(first, _PATH_ONLY, dir_fd=base)) as layer:
                    self._create_below(base, layer)
                result = stack.enter_context(closing(api.open_tree(first, dir_fd=base)))
            api.move_mount(result, target_fd)
            settle(result, self.options)

    def _idmapped_copy(self) -> int:
        copy = api.open_tree(unescape_option(self.base), recursive=True)
        try:
            with mapped_namespace(self.options.uidmap, self.options.gidmap) as userns:
                read_only = api.MOUNT_ATTR_RDONLY
                api.mount_setattr(copy, set=read_only, userns_fd=userns, recursive=True)
        except BaseException:
            os.close(copy)
            raise
        return copy

    def _create_below(self, base: int, target_fd: int) -> None:
        """Make and attach the overlay with its lower directories found below an open one."""
        lower = self._relative()
        if self._fits(lower):
            call_in_directory(base, lambda: self._create(lower, target_fd))
            return
        with closing(_detached_tmpfs()) as links:
            names = tuple(f"{number:x}" for number in range(len(lower)))
            for name, path in zip(names, lower, strict=True):
                os.symlink(f"{fd_path(base)}/{unescape_option(path)}", name, dir_fd=links)
            call_in_directory(links, lambda: self._create(names, target_fd))

    def _create(self, lower: tuple[str, ...], target_fd: int) -> None:
        """Make and attach the overlay of these lower directories."""
        target, flags = fd_path(target_fd), self.options.flags
        api.mount(self.mount.source, target, "overlay", flags, self._text(lower))
        if self.options.propagation:
            # The descriptor is what the new mount covers; the path leads to the mount.
            with closing(os.open(path_of(target_fd), _PATH_ONLY)) as fd:
                settle(fd, self.options)

    def _named(self, error: FileNotFoundError) -> OSError:
        """Say which of the directories is missing, which the kernel does not."""
        paths = [*self.lower, self.options.value("upperdir"), self.options.value("workdir")]
        for path in paths:
            if path and not Path(unescape_option(path)).is_dir():
                return OSError(error.errno, error.strerror, unescape_option(path))
        return error

    def _relative(self) -> tuple[str, ...]:
        base = self.base
        return tuple(str(PurePosixPath(path).relative_to(base)) for path in self.lower)

    def _fits(self, lower: tuple[str, ...]) -> bool:
        return len(os.fsencode(self._text(lower))) <= api.DATA_MAX

    def _text(self, lower: tuple[str, ...]) -> str:
        return ",".join((_LOWERDIR + ":".join(lower), *self.data))


def _detached_tmpfs() -> int:
    with closing(api.fsopen("tmpfs")) as fs:
        api.fsconfig_create(fs)
        return api.fsmount(fs)


@contextmanager
def _attached_for_a_while(mount_fd: int, target_fd: int) -> Iterator[None]:
    api.move_mount(mount_fd, target_fd)
    try:
        # A shared target makes it shared; mounts inside are nobody else's business.
        api.mount_setattr(mount_fd, propagation=api.MS_PRIVATE, recursive=True)
        yield
    finally:
        api.umount2(fd_path(mount_fd), api.MNT_DETACH)

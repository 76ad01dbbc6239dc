"""aufs mounts of more branches than mount(2) takes at once: the others are appended by remounts."""

from __future__ import annotations

import os
from collections.abc import Iterator

from lamina.core.mount import Mount
from lamina.errors import InvalidArgument
from lamina.linux import mountapi as api
from lamina.mount.operations import Filesystem, fd_path
from lamina.mount.options import MountOptions
from lamina.mount.target import path_of

_BRANCHES = "br:"


class Aufs(Filesystem):
    """One aufs mount.

    Attributes:
        branches: `PATH=MODE` each, topmost first.
        data: all other options.

    Raises:
        InvalidArgument: there is no branch.
    """

    __slots__ = ("branches", "data")

    def __init__(self, mount: Mount, options: MountOptions) -> None:
        super().__init__(mount, options)
        found = [o.removeprefix(_BRANCHES) for o in options.data if o.startswith(_BRANCHES)]
        if len(found) != 1 or not found[0]:
            raise InvalidArgument("mount aufs: it needs one option br:, with its branches")
        self.branches = tuple(found[0].split(":"))
        self.data = tuple(option for option in options.data if not option.startswith(_BRANCHES))

    def describe(self) -> str:
        """Count the branches, and name the writable one."""
        writable = next((b.removesuffix("=rw") for b in self.branches if b.endswith("=rw")), "")
        count = len(self.branches)
        text = f"mount aufs of {count} branch{'' if count == 1 else 'es'}"
        return f"{text}, writing to {writable}" if writable else text

    def needs_mount2(self, source: str) -> bool:
        """Tell that fsconfig(2) is not for it: it would take a path for a part of a name."""
        return True

    def steps(self) -> Iterator[str]:
        """Yield the data of the first mount(2), then that of one remount for each other branch."""
        first = 1
        while first < len(self.branches) and self._fits(first + 1):
            first += 1
        yield self._text(first)
        for branch in self.branches[first:]:
            yield f"append:{branch}"

    def execute(self, target_fd: int) -> None:
        """Mount what fits, and append the rest; none of it stays where that fails."""
        data, *rest = self.steps()
        flags = self.options.flags
        api.mount(self.mount.source, fd_path(target_fd), "aufs", flags, data)
        path = path_of(target_fd)  # the descriptor is what the mount covers
        try:
            for more in rest:
                api.mount("none", path, "aufs", flags | api.MS_REMOUNT, more)
        except BaseException:
            api.umount2(path, api.MNT_DETACH)
            raise

    def _fits(self, count: int) -> bool:
        return len(os.fsencode(self._text(count))) <= api.DATA_MAX

    def _text(self, count: int) -> str:
        return ",".join((*self.data, _BRANCHES + ":".join(self.branches[:count])))

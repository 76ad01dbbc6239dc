"""The mount value that snapshotters hand out and `lamina.mount` executes."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable
from typing import NamedTuple

FUSE_OVERLAYFS = "fuse3.fuse-overlayfs"
"""Type of the mounts that the program fuse-overlayfs serves."""
UNIONS = frozenset({"overlay", "aufs", FUSE_OVERLAYFS, "fuse.fuse-overlayfs"})
"""Types of what merges directories that lie on another filesystem."""
_LIKE_OVERLAY = UNIONS - {"aufs"}


class Mount(NamedTuple):
    """One mount, as in `containerd.types.Mount`.

    Attributes:
        type: filesystem type, `bind`, or a helper's (`fuse3.NAME`). May be `xform/.../type`.
        source: device, directory or file; free text for `overlay`.
        target: where below the root of the whole list it goes; "" for the root itself.
        options: as for mount(8), in the order in which they are to be applied.
    """

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written through it.

        `erofs` always; a union with `ro` or without a writable directory; others with `ro`.
        """
        kind = self.type.rpartition("/")[2]
        if kind == "erofs":
            return True
        options = split_options(self.options)
        if "ro" in options:
            return True
        if kind == "aufs":
            return not any(o.startswith("br:") and "=rw" in o for o in options)
        return kind in _LIKE_OVERLAY and not any(o.startswith("upperdir=") for o in options)

    def option(self, name: str) -> str | None:
        """Return the value of the option `name=value`, or None where there is none."""
        prefix = f"{name}="
        return next((o[len(prefix) :] for o in self.options if o.startswith(prefix)), None)

    def command(self, root: str = "") -> str:
        """Return the shell's line that does the same, as `ctr snapshots mounts` prints it.

        mount(8) takes all of the type `fuse3.NAME` for the name of the program; so its helper is
        named instead.
        """
        target = f"{root}/{self.target.lstrip('/')}" if self.target else root
        options = ["-o", ",".join(self.options)] if self.options else []
        helper, _, program = self.type.partition(".")
        if helper == "fuse3" and program:
            words = ["mount.fuse3", self.source, target, *options, "-t", program]
        else:
            words = ["mount", "-t", self.type, self.source, target, *options]
        return shlex.join(words)


def escape_option(path: str | os.PathLike[str]) -> str:
    r"""Return a path as part of an option such as `lowerdir=`: `\`, `:` and `,` get a backslash."""
    return re.sub(r"[\\:,]", r"\\\g<0>", os.fspath(path))


def unescape_option(text: str) -> str:
    """Return the path that `escape_option` made the text from."""
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def split_option(text: str, separator: str) -> list[str]:
    """Split where no backslash precedes the separator, as the kernel does; escapes stay."""
    if "\\" not in text:
        return text.split(separator)
    parts = [""]
    for piece in re.findall(r"\\.|.", text, flags=re.DOTALL):
        if piece == separator:
            parts.append("")
        else:
            parts[-1] += piece
    return parts


def split_options(options: Iterable[str]) -> list[str]:
    r"""Split options that are joined by commas; `\,` does not separate, maps keep their commas."""
    parts: list[str] = []
    for option in options:
        if option.startswith(("uidmap=", "gidmap=")):
            parts.append(option)
        else:
            parts.extend(part for part in split_option(option, ",") if part)
    return parts


def read_only_mounts(mounts: Iterable[Mount]) -> list[Mount]:
    """Return the same mounts with nothing writable in them.

    An overlay loses its work directory and has its upper directory as the topmost lower one, an
    aufs has its writable branch as a read-only one; every mount but an overlay gets `ro`.
    """
    return [_read_only(mount) for mount in mounts]


def _read_only(mount: Mount) -> Mount:
    given = split_options(mount.options)
    kind = mount.type.rpartition("/")[2]
    if kind == "aufs":
        given = [o.replace("=rw", "=ro+wh") if o.startswith("br:") else o for o in given]
    if kind not in _LIKE_OVERLAY:
        return mount._replace(options=(*(o for o in given if o not in {"ro", "rw"}), "ro"))
    upper = next((o.removeprefix("upperdir=") for o in given if o.startswith("upperdir=")), "")
    options = tuple(
        f"lowerdir={upper}:{o.removeprefix('lowerdir=')}"
        if upper and o.startswith("lowerdir=")
        else o
        for o in given
        if not o.startswith(("upperdir=", "workdir=", "uidmap=", "gidmap="))
        and o not in {"volatile", "fsync=volatile"}
    )
    return mount._replace(options=options)

"""mount.fuse3(8) and fusermount3(1): FUSE filesystems that are programs of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lamina.errors import ToolError
from lamina.tools.lookup import installed
from lamina.tools.run import NOT_FOUND, TIMED_OUT, how_to_install, run

_SECONDS = 60
_CHATTER = re.compile(r"^unknown argument ignored: .*\n?", re.MULTILINE)
"""What fuse-overlayfs says of options that it gives itself, whether it works or not."""


def mount_fuse(
    helper: str, type: str, source: str, target: str | Path, options: Sequence[str]
) -> None:
    """Start the filesystem program `type` through its mount helper; returns once it is mounted.

    The program goes on in the background until the filesystem is unmounted.

    Args:
        helper: `mount.fuse3` or `mount.fuse`.
        type: name of the program that serves the filesystem.
        source: what it is to serve.
        target: directory to mount on.
        options: passed with one `-o` each.

    Raises:
        ToolError: the helper or the program failed or is missing; says no more of the command
            line than the program, since all layers of an image are in it.
    """
    words = [word for option in options for word in ("-o", option)]
    try:
        run([helper, source, target, *words, "-t", type], timeout=_SECONDS)
    except ToolError as error:
        missing = next((name for name in (helper, type) if not installed(name)), "")
        if missing and error.code == NOT_FOUND:  # the helper leaves it to a shell to say so
            said, hint = f"{missing} is not installed", how_to_install(missing)
        else:
            said = _CHATTER.sub("", error.stderr)
            hint = error.hint if error.code == TIMED_OUT else ""
        raise ToolError([missing or type], error.code, said, hint=hint) from error


def unmount_fuse(target: str | Path) -> None:
    """Unmount a FUSE filesystem that the caller mounted, without privileges.

    Raises:
        ToolError: it is busy, someone else's, or no FUSE mount.
    """
    run(["fusermount3", "-u", target], timeout=_SECONDS)

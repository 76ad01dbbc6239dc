"""mount.fuse3(8) and fusermount3(1): FUSE filesystems that are programs of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lamina.tools.run import run

_SECONDS = 60


def mount_fuse(
    helper: str, type: str, source: str, target: str | Path, options: Sequence[str]
) -> None:
    """Start the filesystem program `type` through its mount helper; returns once it is mounted.

    Args:
        helper: `mount.fuse3` or `mount.fuse`.
        type: name of the program that serves the filesystem.
        source: what it is to serve.
        target: directory to mount on.
        options: passed with one `-o` each.

    Raises:
        ToolError: the helper or the program failed or is missing.
    """
    words = [word for option in options for word in ("-o", option)]
    run([helper, source, target, *words, "-t", type], timeout=_SECONDS)


def unmount_fuse(target: str | Path) -> None:
    """Unmount a FUSE filesystem that the caller mounted, without privileges.

    Raises:
        ToolError: it is busy, someone else's, or no FUSE mount.
    """
    run(["fusermount3", "-u", target], timeout=_SECONDS)

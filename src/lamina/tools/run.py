"""How Lamina runs other programs: the one place that decides on streams, environment, exit codes.

Standard input is /dev/null, both outputs are captured, LC_ALL is C, a time limit is mandatory,
no shell is involved. The environment is inherited otherwise, and of the descriptors those named.
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from lamina.errors import ToolError

log = logging.getLogger(__name__)

_PACKAGES = {
    "btrfs": "btrfs-progs",
    "crun": "crun",
    "fuse-overlayfs": "fuse-overlayfs",
    "fusermount3": "fuse3",
    "lvm": "lvm2",
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.erofs": "erofs-utils",
    "mkfs.ext2": "e2fsprogs",
    "mkfs.ext3": "e2fsprogs",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "modprobe": "kmod",
    "mount.fuse3": "fuse3",
    "runc": "runc",
    "thin_check": "thin-provisioning-tools",
    "thin_ls": "thin-provisioning-tools",
    "thin_repair": "thin-provisioning-tools",
    "thin_trim": "thin-provisioning-tools",
    "zfs": "zfsutils-linux",
}
"""Debian package of each program, for the hint when it is missing."""

NOT_FOUND = 127
TIMED_OUT = 124


class Completed(NamedTuple):
    """What a program left behind: exit code and both outputs."""

    argv: tuple[str, ...]
    code: int
    stdout: bytes
    stderr: str


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    timeout: float,
    success: Collection[int] = (0,),
    input: bytes | None = None,
    cwd: Path | None = None,
    pass_fds: Collection[int] = (),
) -> Completed:
    """Run a program to its end.

    Args:
        argv: program and arguments; the program is looked up in PATH.
        timeout: seconds after which it is killed.
        success: exit codes that are no error.
        input: its standard input instead of /dev/null; never logged.
        cwd: its current directory.
        pass_fds: descriptors that it inherits under the same numbers.

    Raises:
        ToolError: any other exit code; `code` is negative for a signal, TIMED_OUT when it was
            killed for taking too long, NOT_FOUND when there is no such program.
    """
    words = [os.fspath(word) for word in argv]
    log.debug("run %s", shlex.join(words))
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL if input is None else None,
            input=input,
            capture_output=True,
            timeout=timeout,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C"},
            pass_fds=tuple(pass_fds),
            check=False,
        )
    except FileNotFoundError as error:
        raise _not_started(words, error) from error
    except PermissionError as error:
        raise ToolError(words, NOT_FOUND, f"not executable: {error}") from error
    except subprocess.TimeoutExpired as error:
        said = (error.stderr or b"").decode(errors="replace").strip()
        text = f"{said}\nno end after {timeout:g} s".lstrip()
        raise ToolError(words, TIMED_OUT, text, hint="see what it waits for") from error
    stderr = done.stderr.decode(errors="replace")
    if done.returncode not in success:
        raise ToolError(words, done.returncode, stderr)
    return Completed(tuple(words), done.returncode, done.stdout, stderr)


def how_to_install(program: str) -> str:
    """Return what to do about a program that is missing."""
    package = _PACKAGES.get(program)
    return f"apt-get install {package}" if package else f"install {program} or add it to PATH"


def _not_started(words: Sequence[str], error: FileNotFoundError) -> ToolError:
    # A missing current directory raises the same class with another file name.
    if error.filename not in {words[0], os.fsencode(words[0])}:
        return ToolError(words, NOT_FOUND, f"no such directory: {error.filename}")
    name = Path(words[0]).name
    return ToolError(words, NOT_FOUND, f"{name} is not installed", hint=how_to_install(name))

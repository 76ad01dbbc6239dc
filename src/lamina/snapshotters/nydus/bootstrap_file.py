"""The bootstrap in an unpacked layer, which may have anything in its place."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from lamina.errors import FormatError, NotFound
from lamina.formats.rafs.annotations import BOOTSTRAP_PATH, OLD_BOOTSTRAP_PATH
from lamina.formats.rafs.flags import FORMAT
from lamina.linux.openat2 import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2


def copy_bootstrap(directory: Path, target: Path) -> None:
    """Copy the bootstrap of a layer to a new file, following no links that the layer has.

    Raises:
        NotFound: it has none.
        FormatError: something else is in its place.
    """
    fd = _opened(directory)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _wrong("something else")
        with Path(f"/proc/self/fd/{fd}").open("rb") as source, target.open("xb") as out:
            shutil.copyfileobj(source, out)
    finally:
        os.close(fd)


def _opened(directory: Path) -> int:
    resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
    flags = os.O_PATH | os.O_NOFOLLOW  # nothing happens, be it a device
    root = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in (BOOTSTRAP_PATH, OLD_BOOTSTRAP_PATH):
            try:
                return openat2(name, flags, dir_fd=root, resolve=resolve)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _wrong(f"{name}: {error.strerror}") from error
    finally:
        os.close(root)
    raise NotFound("find the bootstrap of a Nydus image in its layer:", BOOTSTRAP_PATH)


def _wrong(got: str) -> FormatError:
    return FormatError(FORMAT, 0, expected=f"a file {BOOTSTRAP_PATH}", got=got)

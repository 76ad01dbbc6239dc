"""fs-verity of images: the kernel checks each block that it reads of one, from its commit on."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from lamina.errors import FailedPrecondition
from lamina.linux.fsverity import enable_verity, measure_verity

_NONE = frozenset({errno.ENOTTY, errno.EOPNOTSUPP})


def seal(path: Path) -> None:
    """Seal a file that nobody writes any more, unless it is sealed.

    Raises:
        OSError: as `enable_verity`.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if measure_verity(fd) is None:
            enable_verity(fd)
    finally:
        os.close(fd)


def require_sealed(path: Path) -> None:
    """Return if a file is sealed.

    Raises:
        FailedPrecondition: it is not.
        OSError: it cannot be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        found = measure_verity(fd)
    except OSError as error:
        if error.errno not in _NONE:
            raise
        found = None
    finally:
        os.close(fd)
    if found is None:
        hint = "remove the images that have this layer and pull them again, or set enable_fsverity"
        raise FailedPrecondition(
            "mount layer without fs-verity", path, hint=f"{hint} = false to use it as it is"
        )


def fault(directory: Path) -> str:
    """Seal a file in that directory; return why that fails, or ""."""
    import tempfile  # only where it is configured

    fd, name = tempfile.mkstemp(dir=directory)
    os.close(fd)  # what is open for writing cannot be sealed
    try:
        seal(Path(name))
    except OSError as error:
        known = "its filesystem, or the kernel, has no fs-verity"
        return known if error.errno in _NONE else error.strerror or str(error)
    finally:
        Path(name).unlink()
    return ""

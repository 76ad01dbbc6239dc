"""Errors of temporary files, in which what is written waits until it is complete."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lamina.errors import ResourceExhausted

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def spooling(what: str, directory: Path) -> Iterator[None]:
    """Say in errors of the body, which writes to a file without a name, where that is.

    Args:
        what: is written, such as `the layer`.
        directory: that the file is made in.

    Raises:
        ResourceExhausted: the disk is full.
        OSError: anything else; it names the directory if it named no file.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise ResourceExhausted(
                f"write {what} to a temporary file below",
                directory,
                hint=f"{error.strerror}: free some space on its disk",
            ) from error
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, directory) from error

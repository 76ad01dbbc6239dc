"""Whether the bootstrap that is mounted for a layer is sound."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from lamina.errors import FormatError, LaminaError, NotFound
from lamina.formats.rafs.bootstrap import read_bootstrap, version_of
from lamina.lazy.sources.file import FileSource


def fault_of(image: Path, *, deep: bool) -> str | None:
    """Look into a bootstrap of version 6.

    Args:
        image: the file.
        deep: read all of it; else see whether it begins as it should.

    Returns:
        What is wrong; "" for nothing, or no file; None where it is no bootstrap.
    """
    try:
        source = FileSource(image)
    except NotFound:
        return ""
    with closing(source):
        try:
            version_of(source)
        except FormatError:
            return None
        try:
            if deep:
                read_bootstrap(source)
        except LaminaError as error:
            return str(error)
    return ""

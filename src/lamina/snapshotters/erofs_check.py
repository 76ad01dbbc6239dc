"""Whether the EROFS images of layers are sound."""

from __future__ import annotations

from collections import deque
from pathlib import Path

from lamina.core.problem import Problem
from lamina.errors import LaminaError, NotFound
from lamina.formats.erofs.reader import Image
from lamina.lazy.sources.file import FileSource

PULL_AGAIN = "remove the images that have this layer with `lamina images rm`, and pull them again"


def problem_of(id: int, image: Path, *, deep: bool) -> Problem | None:
    """Look into the image of a layer; None where it is sound, or gone.

    Args:
        id: the snapshot's.
        image: the file.
        deep: read all but the data of files, where the superblock and the root have no fault; else
            look at these only.
    """
    try:
        source = FileSource(image)
    except NotFound:
        return None  # removed meanwhile; that it is lost, others tell
    try:
        fault = _fault(source)
        if deep:
            fault = "" if fault else _deep_fault(source)
    finally:
        source.close()
    return Problem(str(id), f"{image} is damaged: {fault}", PULL_AGAIN) if fault else None


def _fault(source: FileSource) -> str:
    try:
        superblock = Image(source).superblock
    except LaminaError as error:
        return str(error)
    size = superblock.blocks << superblock.blkszbits
    return f"it has {source.size} bytes, and should have {size}" if source.size < size else ""


def _deep_fault(source: FileSource) -> str:
    try:
        image = Image(source)
        for _, node in image.walk():
            image.xattrs(node)
            if node.is_symlink:
                image.target(node)
            elif node.is_regular:
                deque(image.extents(node), maxlen=0)
    except LaminaError as error:
        return str(error)
    return ""

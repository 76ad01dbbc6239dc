"""Mounts an image: as the file that it is, or through a loop device where the kernel wants one."""

from __future__ import annotations

import errno
from pathlib import Path

from lamina.core.mount import Mount
from lamina.errors import DataLoss, FormatError, LaminaError
from lamina.mount import mount_all

_DAMAGED = frozenset({errno.EUCLEAN, errno.EBADMSG, errno.EIO})


def mount_image(image: Path, point: Path, *, file_backed: bool = True) -> None:
    """Mount an image on a directory.

    Args:
        image: a file; it must not change while it is mounted.
        point: an empty directory.
        file_backed: try without a loop device first (Linux 6.12 and newer, if so configured).

    Raises:
        DataLoss: the image is damaged, or none.
        LaminaError: the kernel refuses it for another reason.
    """
    try:
        _mount(image, point, file_backed)
    except LaminaError as error:
        damage = _damage(image, error)
        if not damage:
            raise
        hint = "remove the images that have this layer, and pull them again"
        raise DataLoss(f'mount layer "{image}": {damage}', hint=hint) from error


def _mount(image: Path, point: Path, file_backed: bool) -> None:
    mount = Mount("erofs", str(image), options=("ro",))
    if file_backed:
        try:
            mount_all([mount], point)
        except LaminaError as error:
            if _errno(error) != errno.ENOTBLK:
                raise
        else:
            return
    mount_all([mount._replace(options=("ro", "loop"))], point)


def _damage(image: Path, error: LaminaError) -> str:
    """Return what is wrong with an image that the kernel refuses; "" if nothing is known."""
    from lamina.formats.erofs.reader import Image
    from lamina.lazy.sources.file import FileSource

    if _errno(error) in _DAMAGED:
        return "the kernel finds it damaged; dmesg may say more"
    if _errno(error) != errno.EINVAL:
        return ""
    if not image.is_file():
        return "it is no file"
    source = FileSource(image)
    try:
        Image(source)
    except FormatError as fault:
        return fault.what
    finally:
        source.close()
    return ""


def _errno(error: LaminaError) -> int | None:
    return getattr(error.__cause__, "errno", None)

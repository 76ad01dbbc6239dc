"""Mounting a lazy layer whose metadata is an EROFS image, without a loop device."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from lamina.core.mount import Mount
from lamina.errors import FailedPrecondition, InvalidArgument
from lamina.snapshotters.erofs_support import EROFS_FILES


def mount_erofs(image: Path, point: Path, devices: Sequence[Path], *options: str) -> None:
    """Mount an image with the devices that have its data.

    Raises:
        FailedPrecondition: the kernel wants a loop device for that.
        LaminaError: it refuses for another reason.
    """
    from lamina.mount import mount_all

    all_options = ("ro", *(f"device={device}" for device in devices), *options)
    try:
        mount_all([Mount("erofs", str(image), options=all_options)], point)
    except InvalidArgument as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ENOTBLK:
            what = "mount an EROFS image without a loop device, where it is:"
            raise FailedPrecondition(what, image, hint=EROFS_FILES.fix) from error
        raise

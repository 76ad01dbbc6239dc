"""thin-provisioning-tools: a thin pool's metadata, while the pool is not active."""

from __future__ import annotations

import os

from lamina.errors import ToolError
from lamina.tools.run import NOT_FOUND, TIMED_OUT, run

_SECONDS = 3600.0
"""A check reads all of the metadata, at most 16 GiB."""

Device = str | os.PathLike[str]


def thin_check(metadata: Device) -> str:
    """Check a pool's metadata, a device or a file; return what is wrong with it, "" if nothing is.

    Raises:
        ToolError: the program is missing, or did not come to an end.
    """
    try:
        run(["thin_check", metadata], timeout=_SECONDS)
    except ToolError as error:
        if error.code in {NOT_FOUND, TIMED_OUT} or error.code < 0:
            raise
        return "; ".join(error.stderr.split("\n")).strip("; ") or f"thin_check: {error.code}"
    return ""


def clear_needs_check(metadata: Device) -> None:
    """Check again, and take back the kernel's mark that the metadata needs it.

    Raises:
        ToolError: the program is missing, or the metadata is damaged.
    """
    run(["thin_check", "--quiet", "--clear-needs-check-flag", metadata], timeout=_SECONDS)


def thin_repair(damaged: Device, repaired: Device) -> None:
    """Write what can be saved of damaged metadata to another device, or an existing file.

    Raises:
        ToolError: the program is missing, or nothing can be saved.
    """
    run(["thin_repair", "--input", damaged, "--output", repaired], timeout=_SECONDS)


def thin_ls(metadata: Device) -> list[int]:
    """Return the numbers of all devices in the reserved snapshot of an active pool's metadata.

    Raises:
        ToolError: the program is missing, or there is no such snapshot.
    """
    argv = ["thin_ls", "--metadata-snap", "--no-headers", "--format", "DEV", metadata]
    return [int(line) for line in run(argv, timeout=_SECONDS).stdout.split()]


def thin_trim(metadata: Device, data: Device) -> None:
    """Discard every block of the data device that the metadata does not use.

    Raises:
        ToolError: the program is missing, or the data device takes no discards.
    """
    run(["thin_trim", "--metadata-dev", metadata, "--data-dev", data], timeout=_SECONDS)

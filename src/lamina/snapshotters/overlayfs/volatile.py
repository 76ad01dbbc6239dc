"""Overlay mounts with `volatile`: never synced, and worthless after a crash of the machine.

The kernel makes `work/work/incompat/volatile/dirty` when it mounts one and leaves it; while it is
there, the next mount fails (Documentation/filesystems/overlayfs.rst, "Volatile mount"). Within the
boot that mounted it nothing is lost, all writes being in the page cache, and the mark can go.
Under another boot files may be truncated. The boot is in `BOOT` beside `work`, and counts by
itself: whoever asks for the mounts once more removes the mark of a mount that is in use.
"""

from __future__ import annotations

from pathlib import Path

from lamina.errors import DataLoss
from lamina.snapshotters.tree import remove_tree

BOOT = "volatile-boot"
_MARK = Path("work", "work", "incompat", "volatile")


def prepare_volatile(directory: Path, boot: str) -> None:
    """Let the snapshot in this directory be mounted (again) with `volatile`.

    Raises:
        DataLoss: it was mounted so under another boot.
    """
    check_volatile(directory, boot)
    (directory / BOOT).write_text(boot, encoding="ascii")
    remove_tree(directory / _MARK)


def check_volatile(directory: Path, boot: str) -> None:
    """Check that nothing written through a volatile mount can have been lost.

    Raises:
        DataLoss: the machine was restarted after its mounts were given out.
    """
    try:
        prepared_under = (directory / BOOT).read_bytes()
    except FileNotFoundError:
        if not (directory / _MARK).exists():
            return
        prepared_under = b""  # a power loss may take the newer of two files alone
    if prepared_under != boot.encode():
        raise DataLoss(
            "use a volatile snapshot: the machine was restarted after it was prepared", directory,
            hint="files in it may be cut short; remove it and prepare it again",
        )  # fmt: skip

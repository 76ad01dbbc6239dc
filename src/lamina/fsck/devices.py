"""Finds loop devices that have outlived the files below the root that they show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.core.problem import Problem
from lamina.images.fsck import confirmed
from lamina.linux.loop import backing_file

if TYPE_CHECKING:
    from lamina.store import Store

_GONE = " (deleted)"
"""What the kernel puts behind the name of a file that was removed."""


def check_devices(store: Store) -> Iterator[Problem]:
    """Yield the loop devices whose files are gone.

    A device of Lamina's own frees itself after its last user, so one that is still there has some,
    or was set up by hand: it is not taken away. What else drivers have, they tell themselves
    (`lamina.core.driver.Inspectable`).
    """
    for device in confirmed(lambda: _left_over(store.root.resolve())):
        what = "it shows a file of this root that is gone"
        yield Problem(device, what, f"end what uses it, then losetup -d {device}")


def _left_over(root: Path) -> list[str]:
    devices = [f"/dev/{path.name}" for path in Path("/sys/block").glob("loop*")]
    return [device for device in devices if _shows_gone_file(device, f"{root}/")]


def _shows_gone_file(device: str, top: str) -> bool:
    file = backing_file(device) or ""
    return file.startswith(top) and file.endswith(_GONE)

"""Which boot of the machine this is."""

from __future__ import annotations

import functools
from pathlib import Path


@functools.cache
def boot_id() -> str:
    """Return the kernel's random id of this boot (random(4)); containers see the host's."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()

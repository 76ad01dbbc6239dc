"""How much a layer may ask for, and what applying one tells."""

from __future__ import annotations

from dataclasses import dataclass

from lamina.core.digest import Digest


@dataclass(frozen=True, slots=True)
class LayerLimits:
    """Bounds that a layer must stay within; beyond them it is refused with ResourceExhausted.

    Paths are bounded by the kernel (255 bytes a name, 4096 a path), extended headers and long
    names by the format (1 MiB).

    Attributes:
        max_bytes: uncompressed bytes of the archive, and bytes of all its files with their holes.
        max_entries: members of the archive.
    """

    max_bytes: int = 1 << 40
    max_entries: int = 20_000_000


@dataclass(frozen=True, slots=True)
class Applied:
    """What a layer turned out to be.

    Attributes:
        diff_id: SHA-256 of the whole uncompressed stream, bytes after the archive's end included.
        size: length of that stream in bytes.
        entries: members of the archive.
        warnings: what was left out, as sentences; the first few only.
        implied: it uses directories without describing them, and no lower layer was there to tell
            how they look.
    """

    diff_id: Digest
    size: int
    entries: int
    warnings: tuple[str, ...] = ()
    implied: bool = False

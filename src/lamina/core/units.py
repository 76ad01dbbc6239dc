"""Sizes and times as people write and read them."""

from __future__ import annotations

import re

from lamina.errors import InvalidArgument

_SIZE = re.compile(
    r"([0-9]{1,19}(?:\.[0-9]{0,19})?|\.[0-9]{1,19}) ?(?:([kmgtp])(?:i?b)?|b)?",
    re.IGNORECASE | re.ASCII,
)
_LARGEST = 2**63 - 1
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_DURATION_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})(ms|h|m|s)", re.ASCII)
_UNIT_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_CENTURY = 876_000 * 3600.0


def parse_size(text: str) -> int:
    """Return the bytes meant by `10GB`, `512 MiB`, `1.5g` or `4096`; units are powers of 1024.

    Raises:
        InvalidArgument: anything else, such as "", "y" or "10xb"; or 8 EiB and more.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidArgument("parse size", text, hint="write a number and a unit, such as 10GiB")
    number, unit = match[1], 1024 ** _POWER[(match[2] or "").lower()]
    size = int(float(number) * unit) if "." in number else int(number) * unit
    if size > _LARGEST:
        raise InvalidArgument("parse size", text, hint="it is larger than any file can be")
    return size


def format_size(size: float) -> str:
    """Return bytes the way `ctr` prints them: powers of 1024, one decimal, `12.3 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024:
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} PiB"


def parse_duration(text: str) -> float:
    """Return the seconds meant by `90s`, `1h30m`, `24h0m0s` or `250ms`, as Go writes durations.

    Raises:
        InvalidArgument: anything else, a bare number but 0 included, or more than a century, whose
            end is no time that can be stored.
    """
    if text == "0":
        return 0.0
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise InvalidArgument("parse duration", text, hint="write it as 90s, 30m or 1h30m")
    seconds = sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
    if seconds > _CENTURY:
        raise InvalidArgument("parse duration", text, hint="write at most 876000h, 100 years")
    return seconds

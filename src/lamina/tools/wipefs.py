"""wipefs: the signatures of filesystems, partition tables, LVM, RAID and swap on a device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from lamina.errors import FormatError
from lamina.tools.run import run

_SECONDS = 60.0


class Signature(NamedTuple):
    """One that was found: what it is of, such as `ext4` or `gpt`, and the label there, or ""."""

    type: str
    label: str

    def __str__(self) -> str:
        return f"{self.type} {self.label!r}" if self.label else self.type


def signatures(device: Path) -> list[Signature]:
    """Return what is on a device; nothing is changed.

    Raises:
        ToolError: the program is missing, or cannot read the device.
    """
    done = run(["wipefs", "--no-act", "--json", device], timeout=_SECONDS)
    return parse_signatures(done.stdout)


def wipe(device: Path) -> None:
    """Make a device look empty.

    Raises:
        ToolError: it is in use, or cannot be written.
    """
    run(["wipefs", "--all", "--quiet", device], timeout=_SECONDS)


def parse_signatures(output: bytes) -> list[Signature]:
    """Parse wipefs' JSON; where nothing was found, it prints nothing.

    Raises:
        FormatError: it is something else.
    """
    if not output.strip():
        return []
    try:
        found = [
            Signature(str(each["type"]), str(each.get("label") or ""))
            for each in json.loads(output)["signatures"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        expected = "JSON with a list `signatures`"
        raise FormatError("wipefs' output", 0, expected=expected, got=repr(output[:80])) from error
    return list(dict.fromkeys(found))  # several places can say the same

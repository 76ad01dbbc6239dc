"""One thing that was looked at."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Level(enum.StrEnum):
    """How it is: in order, of interest only, worth a look, broken."""

    OK = "ok"
    NOTE = "note"
    WARN = "warn"
    BAD = "bad"


class Finding(NamedTuple):
    """What was found.

    Attributes:
        name: what was looked at.
        level: how it is.
        detail: what is so.
        fix: what would change it; "" where nothing has to.
    """

    name: str
    level: Level
    detail: str
    fix: str = ""

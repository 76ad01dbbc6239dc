"""What a check of the store finds."""

from __future__ import annotations

from typing import NamedTuple

CLEAN_UP = "lamina snapshots cleanup"
"""The fix for what a dead process has left."""


class Problem(NamedTuple):
    """Something that is not as it should be.

    Attributes:
        subject: what it is about: a snapshot's key, a digest, a path.
        what: what is wrong.
        fix: what helps.
    """

    subject: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.what}; {self.fix}"

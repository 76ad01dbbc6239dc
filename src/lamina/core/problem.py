"""What a check of the store finds, and what can be done about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Repair(NamedTuple):
    """What mends a problem.

    Attributes:
        does: in the third person: `removes it`.
        run: does it. Killed at any instruction it leaves the same problem, or one that it mends
            when it is run again; where the problem is gone by then it does nothing. Raises
            LaminaError or OSError where it cannot.
    """

    does: str
    run: Callable[[], object]


class Problem(NamedTuple):
    """Something that is not as it should be.

    Attributes:
        subject: what it is about: a snapshot's key, a digest, a path.
        what: what is wrong.
        fix: what a person has to do, after the repair where there is one.
        repair: what `--repair` does; None where nothing can be done without losing what may still
            be wanted, or without something that is not here.
    """

    subject: str
    what: str
    fix: str = ""
    repair: Repair | None = None

    def __str__(self) -> str:
        remedies = [f"--repair {self.repair.does}"] if self.repair else []
        remedies += [self.fix] if self.fix else []
        return "; ".join([f"{self.subject}: {self.what}", *remedies])

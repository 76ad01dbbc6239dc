"""Steps that setting up a place has, whatever is set up."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from lamina.errors import FailedPrecondition, InvalidArgument, LaminaError
from lamina.provision.unit import BootUnit

log = logging.getLogger(__name__)

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

Say = Callable[[str], None]
"""Told of each step before it is done."""

RecordT = TypeVar("RecordT")


class Made(NamedTuple, Generic[RecordT]):
    """What a set-up came to.

    Attributes:
        record: of what is set up.
        was_there: it was set up before; at most it had to be activated.
        starts_at_boot: systemd activates it; otherwise somebody else must.
    """

    record: RecordT
    was_there: bool
    starts_at_boot: bool


@contextmanager
def undone_on_failure(
    undo: Callable[[], None], *, name: str, command: str, say: Say
) -> Iterator[None]:
    """Undo what the body has made, whatever ends it early.

    Args:
        undo: removes all there is; where it fails too, that is logged.
        name: what is made.
        command: whose `teardown` removes what is left then: `lamina btrfs`.
        say: told of it.
    """
    try:
        yield
    except BaseException:
        say(f"undo what was made of {name}")
        try:
            undo()
        except (LaminaError, OSError) as error:
            log.warning("not all was undone, see `%s teardown`: %s", command, error)
        raise


def require_ready(state: str, what: str, name: str, *, command: str) -> None:
    """Make sure that something was set up to the end, and nobody has begun to tear it down.

    Args:
        state: of its record.
        what: is to be done: `mount btrfs`.
        name: to what.
        command: whose verb was interrupted: `lamina btrfs`.

    Raises:
        FailedPrecondition: it is half-made, or half gone.
    """
    if state == "ready":
        return
    verb = "setup" if state == "making" else "teardown"
    raise FailedPrecondition(what, name, hint=f"run the interrupted `{command} {verb}` again")


def differences(*compared: tuple[str, object, object]) -> list[str]:
    """Say in what something that is there is not what is wanted.

    Args:
        compared: each a name, what there is, and what is wanted.
    """
    return [f"{what} {have}, not {want}" for what, have, want in compared if have != want]


def require_one_line(*paths: str | Path) -> None:
    """Make sure that paths can be part of a unit, and of a command to copy from a terminal.

    Raises:
        InvalidArgument: one has a line's end in it, or another control character.
    """
    for path in map(str, paths):
        if _CONTROL.search(path):
            hint = "its name has a control character, which no unit can have: choose another"
            raise InvalidArgument("set up in", ascii(path), hint=hint)


def install_unit(unit: BootUnit, text: str, say: Say) -> bool:
    """Write and enable a unit; return whether systemd runs the machine, and so will start it."""
    if not unit.possible():
        return False
    if unit.install(text):
        say(f"wrote and enabled {unit.path}")
    return True

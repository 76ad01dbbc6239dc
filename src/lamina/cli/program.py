"""How this program was called, for units that are to call it again."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from lamina.cli.output import say


def program() -> tuple[str, ...]:
    """Return the words before the arguments, with an absolute path where there is one."""
    called = Path(sys.argv[0])
    found = called.absolute() if called.is_file() else shutil.which("lamina")
    return (str(found or "lamina"),)


def say_what_to_run_at_boot(command: Sequence[str]) -> None:
    """Say what would bring back after a boot what was set up, where no unit can."""
    import shlex

    say(f"there is no systemd here: let this run after each boot: {shlex.join(command)}")

"""Whether a program is installed, without what it takes to run one."""

from __future__ import annotations

import os


def installed(program: str) -> bool:
    """Tell whether PATH leads to a program of that name."""
    return any(
        os.access(os.path.join(directory, program), os.X_OK)  # noqa: PTH118  # cheaper than Path
        for directory in os.get_exec_path()
    )

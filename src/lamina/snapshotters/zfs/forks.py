"""What is being forked: a fork is two steps, and a killed process may have made one of them."""

from __future__ import annotations

import re
from pathlib import Path

_ID = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)


class Forks:
    """A symbolic link for each fork that is being made, from its number to its source's."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def note(self, id: int, source: int) -> None:
        """Remember what `id` is about to be a fork of."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        (self._directory / str(id)).symlink_to(str(source))

    def source(self, id: int) -> int | None:
        """Return what `id` was about to be a fork of; None where nobody is forking it."""
        try:
            return int((self._directory / str(id)).readlink().name)
        except FileNotFoundError:
            return None

    def forget(self, id: int) -> None:
        """Forget a fork that is made, or gone."""
        (self._directory / str(id)).unlink(missing_ok=True)

    def ids(self) -> list[int]:
        """List the forks that are being made."""
        try:
            names = [path.name for path in self._directory.iterdir()]
        except FileNotFoundError:
            return []
        return [int(name) for name in names if _ID.fullmatch(name)]

"""Gates: they make readers of a file wait until a filler has put the bytes there.

`fanotify` lets readers at the cache file itself and goes when that is complete and synced; `fuse`
shows the file in a filesystem of its own, which fails rather than showing bytes that are not there;
`nbd` makes a block device of it, which fails likewise.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Protocol

from lamina.errors import LaminaError

log = logging.getLogger(__name__)


class Filler(Protocol):
    """Puts the bytes of one layer into its cache file. Safe to use from any thread."""

    @property
    def size(self) -> int:
        """Bytes of the cache file."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether every byte is local; false again when they turn out not to reach the disk."""
        ...

    @property
    def is_durable(self) -> bool:
        """Whether every byte is local and synced; never false again after it was true."""
        ...

    def is_local(self, start: int, stop: int) -> bool:
        """Tell at once whether these bytes are there.

        Without reading the cache file, and without a lock that is held while it is written: the
        writer may be waiting for the thread that asks.
        """
        ...

    @property
    def data_path(self) -> Path:
        """The cache file."""
        ...

    @property
    def local_bytes(self) -> int:
        """How many bytes are local."""
        ...

    def fill(self, start: int, stop: int) -> range:
        """Return when the bytes from `start` up to `stop` are in the cache file, verified.

        Called for bytes that are there too, after they were read, so that what is likely to be
        read next can be fetched.

        Returns:
            The bytes that came with them: to be called for more of these would change nothing.

        Raises:
            LaminaError, OSError: they cannot be had; reads of them are to fail.
        """
        ...

    def fetch_wanted(self) -> None:
        """Return when what the layer's `wanted` names is local; does not give way to `fill`.

        Raises:
            LaminaError, OSError: as `fill`.
        """
        ...

    def complete(self, *, at_once: bool = False) -> None:
        """Return when every byte is local and synced.

        Args:
            at_once: do not put it off until nobody has waited in `fill` for some time.

        Raises:
            LaminaError, OSError: as `fill`.
        """
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


class GatedFile:
    """One cache file behind a gate.

    Attributes:
        number: of the layer, unique and stable in its root; from 1.
        path: the cache file.
        filler: who fills it.
    """

    __slots__ = ("_followed", "filler", "number", "path")

    def __init__(self, number: int, path: Path, filler: Filler) -> None:
        self.number = number
        self.path = path
        self.filler = filler
        self._followed = range(0)

    def is_news(self, start: int, stop: int) -> bool:
        """Tell whether the filler is to be told of a read that had no need to wait.

        The kernel asks for a unit in many small reads, and only the first says something new.
        """
        followed = self._followed
        return not (followed.start <= start and stop <= followed.stop)

    def follow(self, start: int, stop: int) -> None:
        """Tell the filler of a read that had no need to wait."""
        try:
            self._followed = self.filler.fill(start, stop)
        except (LaminaError, OSError) as error:  # nobody has asked for it yet
            log.info("cannot read ahead: %s", error, extra={"path": str(self.path)})


class Gate(Protocol):
    """Serves files of one root to the kernel's readers."""

    def add(self, file: GatedFile) -> Path:
        """Serve this file from now on; return the path to mount it by. Again is no error."""
        ...

    def remove(self, number: int) -> None:
        """Stop to serve a file that nothing has mounted any more; unknown ones are no error."""
        ...

    @property
    def is_needed(self) -> bool:
        """Whether readers depend on this process."""
        ...

    def start(self) -> None:
        """Answer what earlier processes left, and serve, in threads of its own."""
        ...

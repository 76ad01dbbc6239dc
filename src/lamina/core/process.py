"""What an image says of the process that its containers run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lamina.core.snapshot import EMPTY_LABELS


class ImageProcess(NamedTuple):
    """The part of an image's configuration that running it needs.

    Attributes:
        user: `USER[:GROUP]`, by name or number; "" for root.
        env: `NAME=VALUE`.
        entrypoint: program and first arguments.
        cmd: arguments after those of `entrypoint`; the user's take their place.
        working_dir: "" for the root directory.
        labels: the image's own.
        stop_signal: what asks the process to end; "" for SIGTERM.
    """

    user: str = ""
    env: Sequence[str] = ()
    entrypoint: Sequence[str] = ()
    cmd: Sequence[str] = ()
    working_dir: str = ""
    labels: Mapping[str, str] = EMPTY_LABELS
    stop_signal: str = ""

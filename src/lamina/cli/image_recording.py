"""Which files of an image a verb is to put first: what a run of it opens, or what a record says."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from lamina.cli.app import App
from lamina.cli.output import say
from lamina.cli.run import find_launch
from lamina.errors import NotFound

if TYPE_CHECKING:
    from lamina.images.recording_layers import Attributed
    from lamina.images.tree import PlatformImage
    from lamina.runtime.recording import Recorded
    from lamina.runtime.request import RunRequest

_STOPPING = (signal.SIGINT, signal.SIGTERM)
_LONGEST = 1_000_000
"""Seconds; what poll(2) can wait for is about twice as long."""


class Found(NamedTuple):
    """What comes first.

    Attributes:
        image: what was run, or has the files of the record.
        files: of it.
        run: how it went; None where nothing was run.
    """

    image: PlatformImage
    files: Attributed
    run: Recorded | None


def _no_nan(_: click.Context, option: click.Parameter, value: float | None) -> float | None:
    if value is not None and value != value:
        raise click.BadParameter("it is no number", param=option)
    return value


_OPTIONS = (
    click.option(
        "--period",
        type=click.FloatRange(0, _LONGEST, min_open=True),
        callback=_no_nan,
        metavar="SECONDS",
        help="End the container after so long.  [default: 10; no end with the --wait options]",
    ),
    click.option(
        "--wait-on-line",
        default="",
        metavar="TEXT",
        help="End it when a line of its standard output has this.",
    ),
    click.option(
        "--wait-on-signal", is_flag=True, help="End it when this command gets SIGINT or SIGTERM."
    ),
)


def recording_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say when a recorded container is ended."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def files_of_run(
    app: App,
    ref: str,
    request: RunRequest,
    *,
    period: float | None = None,
    line: str = "",
    on_signal: bool = False,
) -> Found:
    """Run the image, and say what is to be known of the run.

    SIGINT and SIGTERM end the container; unless they are waited for, they end the command too.

    Raises:
        KeyboardInterrupt: one of them came.
        NotFound, StartFailed: as `record_image`.
    """
    from lamina.image_recording import record_image
    from lamina.runtime.recording import DEFAULT_PERIOD, Ended, Until

    if period is None and not line and not on_signal:
        period = DEFAULT_PERIOD
    # Unpacked here, where signals are not held up.
    name, _ = find_launch(app, ref, None)
    with _signals_noted(goes_on=on_signal) as asked:
        until = Until(period, line, asked)
        recorded = record_image(app.store, ref, snapshotter=name, until=until, request=request)
    run = recorded.run
    if run.ended is Ended.EXIT and run.code:
        say(f"the container ended with exit code {run.code}; what it read till then comes first")
    if run.lost:
        say(f"{run.lost} files that it opened could not be looked at")
    return Found(recorded.image, recorded.files, run)


def files_of_record(app: App, ref: str, path: Path) -> Found:
    """Return which files of the image a record names.

    Raises:
        NotFound: there is no such image or record, or the image has none of its files.
        FormatError: it is no record.
    """
    from lamina.image_recording import recorded_before

    image, files = recorded_before(app.store, ref, path)
    if not files.files:
        raise NotFound(f"file of image {ref} in record", path, hint="is it of another image?")
    if files.others:
        say(f"{len(files.others)} of the recorded paths are no files of {ref}")
    return Found(image, files, None)


def check_record_out(path: Path | None) -> None:
    """Look that a record can be written, before a container is run for it."""
    if path is not None and not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise click.UsageError(f"--record-out {path}: there is no such directory, or not to write")


def write_record_out(path: Path | None, found: Found) -> None:
    """Write the record where one is wished."""
    from lamina.images.recording import write_record

    if path is not None:
        path.write_bytes(write_record(found.files.files))


@contextmanager
def _signals_noted(*, goes_on: bool) -> Iterator[int]:
    """Give a descriptor that can be read once SIGINT or SIGTERM has come.

    Unless `goes_on`, the signal has its usual effect at the end.
    """
    caught: list[int] = []
    asked = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def note(number: int, _: object) -> None:
        caught.append(number)
        os.eventfd_write(asked, 1)

    # What a shell has made us ignore stays so, unless it is waited for.
    noted = [n for n in _STOPPING if goes_on or signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in noted}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(asked)
        if caught and not goes_on:
            signal.raise_signal(caught[0])

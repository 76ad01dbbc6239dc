"""One layer's changes read from one mounted snapshot and applied to another, through a pipe."""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lamina.core.cancel import check_cancelled
from lamina.core.mount import Mount, split_option, split_options, unescape_option
from lamina.errors import Aborted, FailedPrecondition
from lamina.formats.tar import END_OF_ARCHIVE
from lamina.layer.changes import Change, between, in_upper
from lamina.layer.compare import granularity
from lamina.layer.diff import ChangeWriter
from lamina.layer.limits import Applied, LayerLimits
from lamina.layer.node import Node, look
from lamina.layer.process import LayerJob, LayerWorkers
from lamina.layer.target import LayerTarget

_TAR = "application/vnd.oci.image.layer.v1.tar"
_LOOK_MS = 500
"""How often a writer that waits for room looks whether anybody still reads."""
_AT_ONCE = 64 << 10
"""Bytes; what a pipe has room for."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied.

    Attributes:
        applied: what the layer was as a stream.
        paths: what it adds or changes.
        granularity_ns: in which units the target keeps times.
    """

    applied: Applied
    paths: frozenset[bytes]
    granularity_ns: int


@dataclass(frozen=True, slots=True)
class LayerSource:
    """Where a layer's changes are read from.

    Attributes:
        upper: root of the tree with the layer, or with `lowers` the directory of the layer alone.
        lower: root of the tree below; None for a base layer.
        lowers: where an overlay keeps the layers below, nearest first; None for trees that are to
            be compared.
    """

    upper: Path
    lower: Path | None = None
    lowers: tuple[Path, ...] | None = None

    def changes(self, stack: ExitStack) -> tuple[Iterable[Change], int]:
        """Return the changes, and the root that their paths are relative to.

        The stack closes both, so that the trees can be unmounted after whatever error.
        """
        root = _open(stack, self.upper)
        if self.lowers is not None:
            lowers = [_open(stack, lower) for lower in self.lowers]
            found = stack.enter_context(closing(in_upper(root, lowers, exact=True)))
            return _of_overlay(found), root
        lower = None if self.lower is None else _open(stack, self.lower)
        return stack.enter_context(closing(between(lower, root, exact=True))), root


class NotALayer(Exception):
    """An overlay's directory says too little of its layer; the trees have to be compared."""


def _of_overlay(changes: Iterable[Change]) -> Iterator[Change]:
    try:
        yield from changes
    except FailedPrecondition as error:
        raise NotALayer from error


def overlay_source(mounts: list[Mount], depth: int) -> LayerSource | None:
    """Return the directories of a Committed overlay snapshot of so many layers.

    Args:
        mounts: of a View of it.
        depth: layers of the snapshot; if the overlay has not one directory for each, none can be
            said to be a layer, and None is returned.
    """
    if len(mounts) != 1 or mounts[0].type != "overlay":
        return None
    options = split_options(mounts[0].options)
    value = next((o.removeprefix("lowerdir=") for o in options if o.startswith("lowerdir=")), "")
    paths = [Path(unescape_option(path)) for path in split_option(value, ":") if path]
    if len(paths) != depth:
        return None
    return LayerSource(paths[0], lowers=tuple(paths[1:]))


def copy_layer(
    source: LayerSource,
    target: LayerTarget,
    workers: LayerWorkers,
    limits: LayerLimits,
    *,
    written: Callable[[int], object],
) -> Copied:
    """Apply to `target` what the source's layer changes, and make its root look as the source's.

    Args:
        source: read in this thread.
        target: written by a worker.
        workers: has one that is free.
        limits: bounds.
        written: told how many bytes have gone over, every now and then.

    Raises:
        Aborted: the source was changed meanwhile, or the worker was killed.
        NotALayer: the source's overlay was made with `redirect_dir` or `metacopy`.
        LaminaError: as `apply_layer`.
    """
    with ExitStack() as stack:
        changes, root = source.changes(stack)
        with _applying(target, workers, limits, written) as (job, pipe):
            try:
                paths = _write(changes, ChangeWriter(root, pipe.write, exact=True))
            except (FileNotFoundError, NotADirectoryError) as error:
                hint = f"the tree was changed meanwhile: {error}"
                raise Aborted("copy a layer", hint=hint) from error
            pipe.write(END_OF_ARCHIVE)
            pipe.flush()
            pipe.close()
            applied = job.result()
        made = _open(stack, target.root)
        for path in paths:
            _remove_attributes(root, made, path)
        unit = _copy_root(root, made)
    return Copied(applied, paths, unit)


def _write(changes: Iterable[Change], writer: ChangeWriter) -> frozenset[bytes]:
    """Write the changes; return the paths of what there is then."""
    paths = set()
    for change in changes:
        writer.add(change)
        if change.node is not None:
            paths.add(change.path)
    return frozenset(paths)


def _copy_root(source: int, target: int) -> int:
    """Make one root look as the other; return in which units, in ns, the target keeps times.

    Layers have no entry for it.
    """
    unit = granularity(target)
    node = Node(source, b".", os.fstat(source))
    _remove_attributes(source, target, b".")
    os.fchown(target, node.status.st_uid, node.status.st_gid)
    for name, value in node.xattrs(exact=True).items():
        os.setxattr(target, name, value)
    os.fchmod(target, stat.S_IMODE(node.status.st_mode))
    os.utime(target, ns=(node.status.st_atime_ns, node.status.st_mtime_ns))
    return unit


def _remove_attributes(source: int, target: int, path: bytes) -> None:
    """Remove what a path has in the target and not in the source; layers can only add attributes.

    A directory that was there before keeps its own, and what is new takes access control lists from
    the directory that it is in.
    """
    made = look(target, path)
    got = made.xattrs(exact=True) if made is not None else {}
    if made is None or not got:
        return
    node = look(source, path)
    surplus = got.keys() - (node.xattrs(exact=True).keys() if node is not None else set())
    if not surplus:
        return
    fd = made.open()
    try:
        for name in surplus:
            os.removexattr(fd, name)
    finally:
        os.close(fd)


@contextmanager
def _applying(
    target: LayerTarget,
    workers: LayerWorkers,
    limits: LayerLimits,
    written: Callable[[int], object],
) -> Iterator[tuple[LayerJob, _Pipe]]:
    """Start a worker on the end of a pipe; its error, where it has one, is what is reported."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        pipe = _Pipe(writing, written)
        path = Path(f"/proc/{os.getpid()}/fd/{reading}")
        job = workers.start(path, _TAR, target, size=None, available=0, diff_id=None, limits=limits)
        pipe.job = job
        try:
            yield job, pipe
        except _Unread:
            job.result()
            raise Aborted("copy a layer", hint="its reader has ended too early") from None
        except BaseException:
            job.cancel()
            raise
        finally:
            pipe.close()
    finally:
        os.close(reading)


class _Unread(Exception):
    """Nobody reads what is written any more."""


class _Pipe:
    """The writing end; never waits for a reader that has ended."""

    def __init__(self, fd: int, written: Callable[[int], object]) -> None:
        self.job: LayerJob | None = None
        self._fd = fd
        self._written = written
        self._total = 0
        self._buffer = bytearray()
        os.set_blocking(fd, False)
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def write(self, data: bytes) -> None:
        """Pass data on, small pieces together."""
        self._buffer += data
        if len(self._buffer) >= _AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Pass on all that was written.

        Raises:
            _Unread: the reader has ended.
        """
        check_cancelled()
        view = memoryview(bytes(self._buffer))
        self._buffer.clear()
        self._total += len(view)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                self._wait()
        self._written(self._total)

    def _wait(self) -> None:
        while not self._poll.poll(_LOOK_MS):
            if self.job is not None and self.job.is_done:
                raise _Unread

    def close(self) -> None:
        """Let the reader see the end; calling it again does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _open(stack: ExitStack, path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd

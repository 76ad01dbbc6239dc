"""One layer's cache: the bytes that are there, and fetching those that are not."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import compress
from pathlib import Path
from typing import NamedTuple

from lamina.core.cancel import check_cancelled
from lamina.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    FormatError,
    LaminaError,
    OutOfRange,
    Unavailable,
)
from lamina.lazy.codecs import Decoder, decode_alone
from lamina.lazy.completion import Completion
from lamina.lazy.cost import COST, CostFile
from lamina.lazy.fetching import Counters, Fetcher
from lamina.lazy.fills import Fill, Fills
from lamina.lazy.layer import DATA, LAYER, MAP, TABLE, LayerFile, LayerLock, read_layer, sync_layer
from lamina.lazy.losses import Losses
from lamina.lazy.policy import FillPolicy
from lamina.lazy.quiet import Quiet
from lamina.lazy.read_ahead import ReadAhead
from lamina.lazy.refusals import Refusals
from lamina.lazy.sources.description import Opener
from lamina.lazy.sources.on_demand import SourceOnDemand
from lamina.lazy.table import UnitTable
from lamina.lazy.trace import TRACE, Trace
from lamina.lazy.unit_list import WANTED, read_units, stretches
from lamina.lazy.unit_map import Identity, UnitMap
from lamina.lazy.users import Users
from lamina.lazy.workers import Workers
from lamina.meta.boot import boot_id

log = logging.getLogger(__name__)


class _Begun(NamedTuple):
    """A request that is under way, which units of it are wanted, and whether it is one's own."""

    fill: Fill
    wanted: range
    is_own: bool


class LayerCache:
    """The cache of one layer, used by one process; its methods may be called from any thread.

    What is in it has been verified. Bytes become local in whole units, first written, then marked;
    a kill at any instant leaves no mark without its data, and after a power loss every mark that
    was not synced is verified before it is believed. Nothing is synced but by `sync` and at the
    end of `complete`.

    Attributes:
        directory: the layer's.
        layer: what `layer.json` says.
        size: of the cache file, in bytes.
        counters: what this object has cost.
    """

    def __init__(
        self,
        directory: Path,
        opener: Opener,
        *,
        policy: FillPolicy | None = None,
        workers: Workers | None = None,
        quiet: Quiet | None = None,
        decoder: Decoder = decode_alone,
        counts_fetched: bool = True,
    ) -> None:
        """Open the layer in `directory`; `close` closes it.

        Args:
            directory: as `layer.create_layer` makes it.
            opener: opens the source that `layer.json` describes, once bytes are missing.
            policy: how to fetch.
            workers: threads to share with other caches; stay the caller's.
            quiet: to share with other caches: their readers come first, too.
            decoder: decodes units, where some need more than their own bytes.
            counts_fetched: count each read of the source as a request of as many bytes; or else the
                source adds to `counters` itself.

        Raises:
            NotFound: there is no such layer.
            FailedPrecondition: another process has it open; the hint says which.
            FormatError: its table or `layer.json` is damaged: it has to be made anew.
            OSError: a file cannot be opened.
        """
        self.directory = directory
        self._policy = policy or FillPolicy()
        self._users = Users("use lazy layer", directory)
        with ExitStack() as opened:
            self._opened = opened
            opened.callback(LayerLock(directory).release)
            self.layer: LayerFile = read_layer(directory)
            self._open_files()
            self._opened = opened.pop_all()
        self._source = SourceOnDemand(opener, self.layer.source, self._table.source_size)
        self.counters = Counters(file=self._cost)
        self._note_local()
        self._fills = Fills(self._table, self._map, self._policy, directory)
        self._fetcher = Fetcher(
            self._table,
            self._map,
            self._fills,
            self._source,
            self.data_fd,
            self._policy,
            self.counters,
            decoder,
            counts_fetched=counts_fetched,
        )
        self._ahead = ReadAhead(self._table, self._policy)
        self._workers = workers or Workers(self._policy.workers)
        self._own_workers = workers is None
        self._quiet = quiet or Quiet(self._policy.silence_seconds)
        self._completion = Completion(self._fills, self._submit, self._policy)
        self._refusals = Refusals()
        self._syncing = threading.Lock()
        self._losses = Losses(self._watched_fd, self._map, self.data_path)
        self._let_go = False

    def _open_files(self) -> None:
        directory = self.directory
        if not (directory / TABLE).exists():
            expected, got = "a unit table", "no file"
            raise FormatError(LAYER, 0, expected=expected, got=got, source=directory / TABLE)
        self._table = UnitTable.open(directory / TABLE)
        self._opened.callback(self._table.close)
        self.size = self._table.cache_size
        self.data_fd = self._open(DATA)
        self._watched_fd = self._open(DATA)
        found = os.fstat(self.data_fd)
        if found.st_size != self.size:
            os.ftruncate(self.data_fd, self.size)
        identity = Identity(len(self._table), found.st_ino, self._table.digest, boot_id())
        map_fd = self._open(MAP)
        self._map = UnitMap(map_fd, identity, data_whole=found.st_size == self.size)
        self._map_fd = map_fd
        self._trace = Trace(directory / TRACE, len(self._table))
        self._opened.callback(self._trace.close)
        self._cost = CostFile(self._open(COST), directory / COST)

    def _open(self, name: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self.directory / name, flags, 0o600)
        self._opened.callback(os.close, fd)
        return fd

    @property
    def data_path(self) -> Path:
        """The cache file, which is as long as the layer's device from the start."""
        return self.directory / DATA

    @property
    def is_complete(self) -> bool:
        """Whether every byte is local, so that no source is needed any more."""
        return self._map.is_complete

    @property
    def is_durable(self) -> bool:
        """Whether every byte is local and was synced: the file needs no guard any more."""
        return self._map.is_durable

    @property
    def local_bytes(self) -> int:
        """Bytes of units in the cache; O(units).

        Raises:
            FailedPrecondition: the cache is closed.
        """
        with self._users.one():
            return sum(compress(self._table.cache_lengths, self._map.selectors))

    @property
    def unit_bytes(self) -> int:
        """Bytes of all units: `local_bytes` of a complete cache."""
        return sum(self._table.cache_lengths)

    @property
    def fetched_bytes(self) -> int:
        """Bytes that came from the source since the cache was opened."""
        return self.counters.fetched_bytes

    @property
    def doubts(self) -> str:
        """Why units that were local are verified anew, "" if none are."""
        return self._map.reset_reason

    def is_local(self, start: int, stop: int) -> bool:
        """Tell whether the cache bytes [start, stop) can be read from the cache file.

        Bytes that are not durable are told to be there only as long as the disk has lost none.
        False of a cache that is closed.
        """
        try:
            with self._users.one():
                units = self._table.find(start, stop)
                return not self._losses.found() and self._map.is_local(units)
        except FailedPrecondition:
            return False

    def fill(self, start: int, stop: int) -> range:
        """Return once the cache bytes [start, stop) can be read from the cache file.

        Returns:
            All bytes of the units that they are in.

        Raises:
            OutOfRange: they are not within the cache file.
            DataLoss: the source's bytes are not what their digest says.
            ResourceExhausted: the disk is full.
            DeadlineExceeded: they did not come within `FillPolicy.fill_seconds`, or have not just
                now for somebody else (`Refusals`).
            Unavailable: the source does not give them just now; so do Unauthenticated,
                PermissionDenied and NotFound.
            FailedPrecondition: the cache is closed.
        """
        if start < 0 or stop > self.size:
            raise OutOfRange(f"fill bytes {start} to {stop} of {self.directory}")
        if self._map.is_durable:
            return range(self.size)
        with self._users.one():
            if self._losses.found():
                self._forget_lost()
            units = self._table.find(start, stop)
            self._trace.note(units)
            if self._map.is_local(units):
                self._read_ahead(units)
            else:
                with self._quiet.disturbed():
                    self._wait_for(units)
            return self._table.cache_range(units)

    def read(self, start: int, length: int) -> bytes:
        """Return exactly `length` bytes of the cache file from `start` on, filled before.

        Raises:
            OSError: the cache file cannot be read.
            as `fill`.
        """
        if length < 0:
            raise OutOfRange(f"read {length} bytes of {self.directory}")
        data = bytearray()
        with self._users.one():  # or the number of the descriptor could become another file's
            self.fill(start, start + length)
            while len(data) < length and (
                part := os.pread(self.data_fd, length - len(data), start + len(data))
            ):
                data += part
        return bytes(data)

    def prefetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Fill some ranges of cache bytes, in this order, without waiting for readers to be quiet.

        Raises:
            as `fill`, for the first range that does not come; and Cancelled (`core.cancel`).
        """
        with self._users.one():
            self._completion.run(map(self._units_of, ranges))

    def fetch_wanted(self) -> None:
        """Fill what `wanted` names, in its order, without waiting for readers to be quiet.

        Raises:
            as `prefetch`; OSError: the file cannot be read.
        """
        with self._users.one():
            units = read_units(self.directory / WANTED, len(self._table))
            self._completion.run(stretches(units))

    def complete(self, order: Iterable[tuple[int, int]] = (), *, at_once: bool = False) -> None:
        """Fill everything: first `order`, then the rest; then `sync`.

        Returns when the cache is complete and durable; the source is let go of then.

        Args:
            order: ranges of cache bytes.
            at_once: do not wait until readers are quiet.

        Raises:
            as `prefetch`; what has come until then stays.
            OSError: as `sync`.
        """
        wait = None if at_once else self._wait_for_silence
        with self._users.one():
            if not self._map.is_complete:
                self._completion.run(map(self._units_of, order), wait)
                self._completion.run([range(len(self._table))], wait)
            self.sync()
        self._source.close()

    def sync(self) -> None:
        """Make the layer, and what is local of it now, survive a power loss.

        Raises:
            OSError: the kernel could not write some of it. What was not durable yet is fetched
                again.
        """
        with self._users.one(), self._syncing:
            sync_layer(self.directory)
            before = self._map.snapshot()
            # A kill between the sync that fails and the map must leave a doubt: see below.
            self._map.doubt_on_disk(before)
            try:
                os.fdatasync(self.data_fd)
            except OSError:
                # The kernel tells of a lost page once, and has it in memory as if it were on disk.
                # Its digest would be right and a second sync succeed, so it is to be written anew.
                self._losses.note()
                self._forget_lost()
                raise
            if not self._map.settle(before):
                raise OSError(errno.EIO, "the disk has lost what was written", self.data_path)
            os.fdatasync(self._map_fd)

    def close(self) -> None:
        """Give up what is under way and let go of the directory.

        Readers that wait get FailedPrecondition. A request or a use that is still under way after
        `FillPolicy.fill_seconds` keeps the files open and the directory locked, since what it
        reads and writes must not be another file's; calling this again waits once more.
        """
        if self._let_go:
            return
        deadline = time.monotonic() + self._policy.fill_seconds
        self._users.refuse()
        drained = self._fills.drain(self._policy.fill_seconds)
        if self._own_workers:
            self._workers.close()
        drained = self._users.gone(deadline - time.monotonic()) and drained
        with self._syncing:
            if drained:
                self._source.close()
                self._opened.close()
                self._let_go = True
            else:
                log.warning("a request does not end", extra={"path": str(self.directory)})

    def _forget_lost(self) -> None:
        self._losses.forget()
        self._note_local()

    def _note_local(self) -> None:
        self.counters.found(self.local_bytes, self.unit_bytes, self.size)

    @property
    def _closed(self) -> bool:
        return self._users.are_refused

    def _units_of(self, stretch: tuple[int, int]) -> range:
        return self._table.find(*stretch)

    def _wait_for_silence(self) -> None:
        self._quiet.wait(self._check_wanted)

    def _check_wanted(self) -> None:
        """Raise Cancelled when nobody wants the layer to be completed any more."""
        check_cancelled()
        if self._closed:
            raise Cancelled("complete a layer")

    def _wait_for(self, units: range) -> None:
        """Have what is missing fetched, and wait for it."""
        self._refusals.check(units)
        began = time.monotonic()
        deadline = began + self._policy.fill_seconds
        try:
            while requests := self._begin(units, urgent=True):
                self._read_ahead(units)
                for request in requests:
                    self._wait_for_one(request, deadline)
        except (DeadlineExceeded, Unavailable) as error:
            missing = [one for one in units if not self._map.is_local(range(one, one + 1))]
            self._refusals.note(missing, error, began)
            raise
        finally:
            self.counters.add(fills=1, wait_seconds=time.monotonic() - began)

    def _wait_for_one(self, request: _Begun, deadline: float) -> None:
        """Wait for a request; return too when it is to be asked for anew.

        One that was begun for somebody else may have had less time left.
        """
        try:
            self._fills.wait(request.fill, request.wanted, deadline)
        except (DeadlineExceeded, Unavailable):
            if request.is_own or time.monotonic() >= deadline:
                raise

    def _begin(self, units: range, *, urgent: bool) -> list[_Begun]:
        """Return the requests that have the missing ones of `units`; all are under way then."""
        self._users.check()
        requests: list[_Begun] = []
        number, most = units.start, self._policy.request_bytes
        while (found := self._fills.next(number, units.stop, most)) is not None:
            if found.is_new:
                self._submit(found.fill, urgent=urgent)
            elif urgent:
                self.counters.add(waits=1)
            number = min(found.fill.units.stop, units.stop)
            requests.append(_Begun(found.fill, range(found.number, number), found.is_new))
        return requests

    def _submit(self, request: Fill, *, urgent: bool) -> None:
        try:
            self._workers.submit(lambda: self._carry_out(request), urgent=urgent)
        except LaminaError as error:
            self._fills.give_up(request, error)

    def _carry_out(self, request: Fill) -> None:
        if self._closed:
            self._fills.give_up(request, Cancelled("fetch for a layer that was closed"))
        else:
            self._fetcher.carry_out(request)
            if len(request.errors) < len(request.units):
                self._refusals.clear()

    def _read_ahead(self, units: range) -> None:
        if ahead := self._ahead.after(units):
            self._begin(ahead, urgent=False)

"""Carrying out one request: fetch, decode, verify, write, and only then say that it is there."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from lamina.core.cancel import CancelToken, cancellable
from lamina.core.source import RangeSource
from lamina.errors import DataLoss, Internal, LaminaError, ResourceExhausted
from lamina.lazy.checks import digest_of
from lamina.lazy.codecs import Buffer, Decoder, decode_alone
from lamina.lazy.cost import CostFile
from lamina.lazy.fills import Fill, Fills
from lamina.lazy.policy import FillPolicy
from lamina.lazy.table import UnitTable
from lamina.lazy.unit import BLOCK, Check, Piece, Unit
from lamina.lazy.unit_map import State, UnitMap

_VECTORS = 512
"""Most buffers of one pwritev(2); IOV_MAX is 1024."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(slots=True)
class Counters:
    """What a cache has cost since it was opened.

    Attributes:
        requests: range requests to the source.
        fetched_bytes: source bytes that they brought.
        written_bytes: decoded and verified bytes written to the cache.
        kept_units: doubtful units that were found whole in the cache.
        fills: times that a reader found bytes missing.
        waits: those of them for which a request was under way already.
        wait_seconds: how long they waited, all together.
        failures: units that did not come.
        local_bytes: bytes of units that came into the cache, less those that were forgotten.
        file: where the sums of all processes are kept, if anywhere.
    """

    requests: int = 0
    fetched_bytes: int = 0
    written_bytes: int = 0
    kept_units: int = 0
    fills: int = 0
    waits: int = 0
    wait_seconds: float = 0.0
    failures: int = 0
    local_bytes: int = 0
    file: CostFile | None = field(default=None, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, **amounts: float) -> None:
        """Add to counters by name; safe for threads."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)
            if self.file is not None:
                self.file.add(amounts)

    def found(self, local_bytes: int, unit_bytes: int, cache_bytes: int) -> None:
        """Say anew what is local, where it has not come or gone a unit at a time."""
        with self._lock:
            if self.file is not None:
                self.file.set(
                    local_bytes=local_bytes, unit_bytes=unit_bytes, cache_bytes=cache_bytes
                )


class Fetcher:
    """Carries out requests for one cache, in any thread.

    Args:
        fd: the cache file, opened for reading and writing before anything marks it.
        decoder: decodes units.
        counts_fetched: as `LayerCache` has it.
    """

    def __init__(
        self,
        table: UnitTable,
        units: UnitMap,
        fills: Fills,
        source: RangeSource,
        fd: int,
        policy: FillPolicy,
        counters: Counters,
        decoder: Decoder = decode_alone,
        *,
        counts_fetched: bool = True,
    ) -> None:
        self._table = table
        self._map = units
        self._fills = fills
        self._source = source
        self._fd = fd
        self._policy = policy
        self._counters = counters
        self._decoder = decoder
        self._counts = counts_fetched

    def carry_out(self, fill: Fill) -> None:
        """Bring a request's units into the cache, or say why they did not come; raises nothing."""
        token = CancelToken(time.monotonic() + self._policy.fill_seconds)
        try:
            with cancellable(token):
                self._fetch(fill)
        except LaminaError as error:
            self._give_up(fill, error)
        except OSError as error:
            self._give_up(fill, _of_disk(error))
        except BaseException as error:  # whoever waits has to be told, whatever it is
            wrapped = Internal(f"fetch: {type(error).__name__}: {error}")
            wrapped.__cause__ = error
            self._give_up(fill, wrapped)

    def is_whole(self, unit: Unit) -> bool:
        """Tell whether the disk has a unit's bytes, by their digests.

        Raises:
            OSError: they cannot be read; EIO is taken for damage.
        """
        # A page that could not be written is kept in memory as if it were on disk.
        length = -(-unit.cache_length // BLOCK) * BLOCK
        os.posix_fadvise(self._fd, unit.cache_offset, length, os.POSIX_FADV_DONTNEED)
        try:
            return all(map(self._has, unit.pieces))
        except OSError as error:
            if error.errno == errno.EIO:
                return False
            raise

    def _give_up(self, fill: Fill, error: LaminaError) -> None:
        self._counters.add(failures=len(fill.left))
        self._fills.give_up(fill, error)

    def _fetch(self, fill: Fill) -> None:
        wanted = [number for number in fill.units if not self._keep(fill, number)]
        if not wanted:
            return
        start = self._table.source_range(wanted[0])[0]
        stop = self._table.source_range(wanted[-1])[1]
        data = memoryview(self._source.read_at(start, stop - start))
        if self._counts:
            self._counters.add(requests=1, fetched_bytes=len(data))
        for number in wanted:
            first, end = self._table.source_range(number)
            self._store(fill, number, data[first - start : end - start])

    def _keep(self, fill: Fill, number: int) -> bool:
        """Take a doubtful unit for present if its bytes are whole."""
        if self._map.state(number) is not State.DOUBTFUL:
            return False
        if not self.is_whole(self._table.unit(number)):
            return False
        self._map.mark(number, State.LOCAL)
        self._counters.add(kept_units=1, local_bytes=self._table.cache_length(number))
        self._fills.done(fill, number)
        return True

    def _store(self, fill: Fill, number: int, data: memoryview) -> None:
        unit = self._table.unit(number)
        try:
            decoded = decode_unit(unit, data, self._decoder)
        except DataLoss as error:
            self._counters.add(failures=1)
            self._fills.done(fill, number, _named(error, unit))
            return
        self._write(unit, decoded)
        self._map.mark(number, State.LOCAL)
        written = sum(piece.length for piece in unit.pieces)
        self._counters.add(written_bytes=written, local_bytes=unit.cache_length)
        self._fills.done(fill, number)

    def _write(self, unit: Unit, decoded: Sequence[Buffer]) -> None:
        """Write the pieces, with zeros between them and after the last, up to a whole block."""
        position = offset = unit.cache_offset
        vector: list[Buffer] = []
        for piece, data in zip(unit.pieces, decoded, strict=True):
            vector += [bytes(piece.cache_offset - position), data]
            position = piece.cache_offset + piece.length
            if len(vector) >= _VECTORS:
                _write_vector(self._fd, vector, offset)
                vector, offset = [], position
        vector.append(bytes(-position % BLOCK))
        _write_vector(self._fd, vector, offset)

    def _has(self, piece: Piece) -> bool:
        data = bytearray()
        while len(data) < piece.length:
            position = piece.cache_offset + len(data)
            part = os.pread(self._fd, piece.length - len(data), position)
            if not part:
                return False
            data += part
        return piece.check is not Check.NONE and digest_of(piece.check, data) == piece.digest


def decode_unit(unit: Unit, data: memoryview, decoder: Decoder = decode_alone) -> list[Buffer]:
    """Return the verified bytes of each piece of a unit, given its encoded bytes.

    Raises:
        DataLoss: a digest does not match.
        FormatError: it cannot be decoded.
    """
    end = max(piece.inner_offset + piece.length for piece in unit.pieces)
    decoded = memoryview(decoder(unit, data, end))
    found: list[Buffer] = []
    for piece in unit.pieces:
        part = decoded[piece.inner_offset : piece.inner_offset + piece.length]
        if piece.check is not Check.NONE:
            got = digest_of(piece.check, part)
            if got != piece.digest:
                name = piece.check.name.lower()
                said = f"expected {name}:{piece.digest.hex()}, got {name}:{got.hex()}"
                raise DataLoss(f"verify the chunk for byte {piece.cache_offset}: {said}")
        found.append(part)
    return found


def _named(error: DataLoss, unit: Unit) -> DataLoss:
    """Say which bytes of the source are damaged."""
    end = unit.source_offset + unit.source_length
    named = DataLoss(f"bytes {unit.source_offset} to {end - 1} of the layer: {error.what}")
    named.__cause__ = error
    return named


def _of_disk(error: OSError) -> LaminaError:
    """Say what an error of the cache's own files means."""
    reason = error.strerror or str(error)
    wrapped: LaminaError
    if error.errno in _FULL:
        hint = "free space there, or lower the budget of lazy caches"
        wrapped = ResourceExhausted(f"write to the cache: {reason}", hint=hint)
    else:
        wrapped = DataLoss(f"use the cache's files: {reason}")
    wrapped.__cause__ = error
    return wrapped


def _write_vector(fd: int, vector: Sequence[Buffer], offset: int) -> None:
    left = [memoryview(data) for data in vector if len(data)]
    while left:
        written = os.pwritev(fd, left, offset)
        offset += written
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if written:
            left[0] = left[0][written:]

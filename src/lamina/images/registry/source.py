"""A blob in a registry as a `RangeSource`: any bytes of it, by HTTP ranges (RFC 9110, 14).

Each read asks for one range: several at once are refused by some registries. The size is that of
the descriptor, since some answer no HEAD. The host that a redirect led to is asked again directly,
until it refuses: signed URLs expire.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field

import urllib3
from urllib3.exceptions import HTTPError

from lamina.core.cancel import check_cancelled, current_deadline
from lamina.errors import (
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    OutOfRange,
    Unavailable,
)
from lamina.images.manifest import Descriptor
from lamina.images.reference import Reference
from lamina.images.registry.cancel import Cancel
from lamina.images.registry.connections import reason
from lamina.images.registry.failure import Failure, combined
from lamina.images.registry.hosts import Endpoint, HostsConfig
from lamina.images.registry.requests import Requests
from lamina.images.registry.retry import RetryPolicy

log = logging.getLogger(__name__)

MAX_SKIPPED = 8 << 20
"""Most bytes before the wanted ones that are read from a host that sends the whole blob."""
_PIECE = 256 << 10
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)", re.ASCII)


@dataclass(slots=True)
class SourceCounters:
    """What a source has cost: requests, bytes of bodies, redirects that were resolved."""

    requests: int = 0
    received_bytes: int = 0
    resolved: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, *, requests: int = 0, received_bytes: int = 0, resolved: int = 0) -> None:
        """Add to the counters; safe for threads."""
        with self._lock:
            self.requests += requests
            self.received_bytes += received_bytes
            self.resolved += resolved


class RegistrySource:
    """Reads one blob from whichever of its registry's hosts gives it; safe for threads.

    The deadline of a read is that of the context (`core.cancel`); without one, it gives up when
    every host has failed `RetryPolicy.attempts` times in a row. It may end later than its deadline
    by one wait for the network, which is never longer than the time that was left before it.

    Attributes:
        counters: what it has cost.
    """

    def __init__(
        self,
        hosts: HostsConfig,
        requests: Requests,
        policy: RetryPolicy,
        ref: Reference,
        descriptor: Descriptor,
    ) -> None:
        self._hosts = hosts
        self._requests = requests
        self._policy = policy
        self._ref = ref
        self._descriptor = descriptor
        self._what = f"fetch a part of blob {descriptor.digest} of {ref}"
        self._lock = threading.Lock()
        self._locations: dict[Endpoint, str] = {}
        self._favourite: Endpoint | None = None
        self.counters = SourceCounters()

    def __repr__(self) -> str:
        return f"RegistrySource({self._descriptor.digest} of {self._ref})"

    @property
    def size(self) -> int:
        """Length in bytes, as the descriptor says."""
        return self._descriptor.size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from byte `offset` on.

        Raises:
            OutOfRange: the range does not lie inside the blob.
            Unavailable: no host gives it just now, or none answers ranges.
            Unauthenticated, PermissionDenied, NotFound: a host refuses it.
            DataLoss: the blob there is not of the descriptor's size.
            DeadlineExceeded, Cancelled: nobody waits any more.
            ConfigError: a `hosts.toml`, a certificate file or the docker configuration is wrong.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OutOfRange(f"{self._what}: bytes {offset} to {offset + length} of {self.size}")
        part = _Part(offset, length)
        rounds = 0
        while part.missing:
            before = part.missing
            failures = self._round(part)
            if not part.missing:
                break
            rounds = 1 if part.missing < before else rounds + 1
            self._pause(rounds, failures)
        return part.joined()

    def _round(self, part: _Part) -> list[Failure]:
        """Ask one host after the other, the one that gave something last first.

        Returns:
            What kept each from it; empty if one gave it all.
        """
        failures: list[Failure] = []
        for endpoint in self._endpoints():
            try:
                self._attempt(endpoint, part)
            except Failure as failure:
                failures.append(failure)
            if not part.missing:
                self._favourite = endpoint
                return []
        return failures

    def _endpoints(self) -> list[Endpoint]:
        found = [e for e in self._hosts.endpoints(self._ref.host) if "pull" in e.capabilities]
        if not found:
            hint = "give one the capability 'pull' in hosts.toml"
            raise FailedPrecondition(f"{self._what}: no host may do it", hint=hint)
        if self._favourite in found:
            found.sort(key=lambda endpoint: endpoint != self._favourite)
        return found

    def _pause(self, rounds: int, failures: list[Failure]) -> None:
        """Wait before the next round, or raise what there is to say if there is none."""
        transient = [failure for failure in failures if failure.transient]
        deadline = current_deadline()
        asked = [failure.retry_after for failure in transient if failure.retry_after is not None]
        delay = self._policy.delay(rounds, min(asked) if asked else None)
        if deadline is None:
            out_of_tries = rounds >= self._policy.attempts
        else:
            out_of_tries = time.monotonic() + delay >= deadline
        if not transient or out_of_tries:
            raise combined(failures) from failures[-1]
        log.info("trying again in %.1f s: %s", delay, transient[-1].error)
        self._policy.wait(delay, Cancel())
        check_cancelled()

    def _attempt(self, endpoint: Endpoint, part: _Part) -> None:
        """Ask one host once for what is missing.

        Raises:
            Failure: it did not give all of it.
        """
        seconds = self._seconds()
        first, last = part.position, part.end - 1
        headers = {"Accept": "*/*", "Range": f"bytes={first}-{last}"}
        with closing(self._open(endpoint, headers, seconds)) as answer:
            skip, length = self._body(answer, endpoint, part)
            self._read(answer, endpoint, part, skip, length)
        if part.missing:
            text = f"{self._from(endpoint)}: it ended at byte {part.position} of {part.end}"
            raise Failure(Unavailable(text), transient=True)

    def _open(
        self, endpoint: Endpoint, headers: dict[str, str], seconds: float | None
    ) -> urllib3.BaseHTTPResponse:
        with self._lock:
            url = self._locations.get(endpoint)
        self.counters.add(requests=1)
        if url:
            try:
                answer = self._requests.reopen(endpoint, url, headers, seconds)
            except Failure:
                self._remember(endpoint, "")
                raise
            if answer is not None:
                return answer
            self.counters.add(requests=1)
        path = f"blobs/{self._descriptor.digest}"
        try:
            answer, other = self._requests.locate(
                endpoint, self._ref, "GET", path, headers, self._what, seconds
            )
        except Failure:
            self._remember(endpoint, "")
            raise
        self._remember(endpoint, other)
        return answer

    def _remember(self, endpoint: Endpoint, url: str) -> None:
        with self._lock:
            before = self._locations.get(endpoint, "")
            self._locations[endpoint] = url
        if url and url != before:
            self.counters.add(resolved=1)

    def _body(
        self, answer: urllib3.BaseHTTPResponse, endpoint: Endpoint, part: _Part
    ) -> tuple[int, int]:
        """Return how many bytes of the body to pass over, and how many then to take.

        Raises:
            Failure: the answer does not have the bytes that were asked for.
        """
        kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind in {"text/html", "multipart/byteranges"}:
            hint = "see whether a proxy or a login page answers for the registry"
            text = f"{self._from(endpoint)}: the answer is {kind}, not a part of a blob"
            raise Failure(Unavailable(text, hint=hint))
        if answer.status == 416:
            text = f"{self._from(endpoint)}: it has no bytes from {part.position} on"
            raise Failure(DataLoss(text))
        if answer.status == 206:
            return 0, self._stretch(answer, endpoint, part)
        length = answer.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) != self.size:
            text = f"{self._from(endpoint)}: its size is {length} there, {self.size} here"
            raise Failure(DataLoss(text))
        if part.position > MAX_SKIPPED:
            text = f"{self._from(endpoint)}: it sends the whole blob when asked for a part of it"
            hint = "pull the image without lazy loading, or use a mirror that answers ranges"
            raise Failure(Unavailable(text, hint=hint))
        return part.position, part.missing

    def _stretch(self, answer: urllib3.BaseHTTPResponse, endpoint: Endpoint, part: _Part) -> int:
        """Check which bytes a partial answer says it has; return how many. It may end early."""
        said = answer.headers.get("Content-Range", "")
        match = _CONTENT_RANGE.fullmatch(said.strip())
        sizes = {"*", str(self.size)}
        right = (
            match is not None
            and int(match[1]) == part.position
            and part.position <= int(match[2]) < part.end
            and match[3] in sizes
        )
        if match is None or not right:
            asked = f"bytes {part.position}-{part.end - 1}/{self.size}"
            text = f"{self._from(endpoint)}: asked for {asked}, it sent {said[:80]!r}"
            raise Failure(Unavailable(text))
        return int(match[2]) + 1 - part.position

    def _read(
        self,
        answer: urllib3.BaseHTTPResponse,
        endpoint: Endpoint,
        part: _Part,
        skip: int,
        length: int,
    ) -> None:
        """Take bytes of the body until there are enough, or no more.

        One more read finds the end of a proper body, so that its connection can be used again; an
        answer that goes on is hung up on.
        """
        until = time.monotonic() + self._policy.progress_window
        brought = 0
        while left := skip + length:
            data = self._read_some(answer, min(_PIECE, left), endpoint)
            if not data:
                return
            self.counters.add(received_bytes=len(data))
            dropped = min(skip, len(data))
            skip -= dropped
            length -= len(data) - dropped
            part.add(memoryview(data)[dropped:] if dropped else data)
            brought += len(data)
            self._seconds()
            if time.monotonic() < until:
                continue
            if brought < self._policy.progress_bytes:
                text = f"{self._from(endpoint)}: next to nothing comes"
                raise Failure(Unavailable(text), transient=True)
            until, brought = time.monotonic() + self._policy.progress_window, 0
        if answer.status == 206:
            with suppress(Failure):
                self._read_some(answer, 1, endpoint)

    def _read_some(self, answer: urllib3.BaseHTTPResponse, most: int, endpoint: Endpoint) -> bytes:
        try:
            return answer.read1(most)
        except HTTPError as error:
            text = f"{self._from(endpoint)}: the connection broke: {reason(error)}"
            raise Failure(Unavailable(text), transient=True) from error

    def _seconds(self) -> float | None:
        """Return how long somebody still waits, None for no limit.

        Raises:
            DeadlineExceeded, Cancelled: nobody does.
        """
        check_cancelled()
        deadline = current_deadline()
        if deadline is None:
            return None
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(self._what)
        return left

    def _from(self, endpoint: Endpoint) -> str:
        return f"{self._what} from {endpoint.host}"


class _Part:
    """The wanted bytes, as far as they have come."""

    __slots__ = ("_pieces", "end", "position")

    def __init__(self, offset: int, length: int) -> None:
        self.position = offset
        """The first byte that is missing."""
        self.end = offset + length
        self._pieces: list[bytes | memoryview] = []

    def add(self, data: bytes | memoryview) -> None:
        """Take bytes from `position` on."""
        self._pieces.append(data)
        self.position += len(data)

    def joined(self) -> bytes:
        """Return all bytes."""
        return b"".join(self._pieces)

    @property
    def missing(self) -> int:
        """How many bytes are."""
        return self.end - self.position

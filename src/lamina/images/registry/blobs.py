"""Downloading one blob from one host, from wherever the last attempt stopped."""

from __future__ import annotations

import re
from contextlib import closing
from typing import Protocol

import urllib3

from lamina.errors import DataLoss, Unavailable
from lamina.images.manifest import Descriptor
from lamina.images.reference import Reference
from lamina.images.registry.body import copy_body
from lamina.images.registry.cancel import Cancel
from lamina.images.registry.failure import Failure
from lamina.images.registry.hosts import Endpoint
from lamina.images.registry.requests import Requests
from lamina.images.registry.retry import RetryPolicy

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-[0-9]+/([0-9]+|\*)", re.ASCII)


class Sink(Protocol):
    """Where a blob goes; hashing it is the sink's business."""

    @property
    def offset(self) -> int:
        """How many bytes are there."""
        ...

    def write(self, data: bytes | memoryview) -> None:
        """Append all of `data`."""
        ...


class BlobDownload:
    """Attempts to bring a sink from its offset to the descriptor's size."""

    def __init__(
        self,
        requests: Requests,
        policy: RetryPolicy,
        ref: Reference,
        descriptor: Descriptor,
        sink: Sink,
        cancel: Cancel,
    ) -> None:
        self._requests = requests
        self._policy = policy
        self._ref = ref
        self._descriptor = descriptor
        self._sink = sink
        self._cancel = cancel
        self._what = f"fetch blob {descriptor.digest} of {ref}"
        self._no_ranges: set[Endpoint] = set()

    def attempt(self, endpoint: Endpoint) -> None:
        """Ask once for what is missing, and write what comes.

        A host that ignores the range is read past what is there already.

        Raises:
            Failure: it did not come to the end.
            DataLoss: more bytes came than the descriptor says.
        """
        there, size = self._sink.offset, self._descriptor.size
        if there == size:
            return
        headers = {"Accept": "*/*"}
        if there and endpoint not in self._no_ranges:
            headers["Range"] = f"bytes={there}-{size - 1}"
        path = f"blobs/{self._descriptor.digest}"
        answer = self._requests.open(endpoint, self._ref, "GET", path, headers, self._what)
        with closing(answer):
            position = self._start_of(answer, endpoint, there)
            self._copy(answer, endpoint, there - position)
        if self._sink.offset < size:
            text = f"{self._from(endpoint)}: it ended at byte {self._sink.offset} of {size}"
            raise Failure(Unavailable(text), transient=True)

    def _copy(self, answer: urllib3.BaseHTTPResponse, endpoint: Endpoint, skip: int) -> None:
        sink, size = self._sink, self._descriptor.size

        def write(data: bytes) -> None:
            nonlocal skip
            if skip >= len(data):
                skip -= len(data)
                return
            piece = memoryview(data)[skip:] if skip else data
            skip = 0
            if sink.offset + len(piece) > size:
                raise DataLoss(f"{self._from(endpoint)}: more than its {size} bytes came")
            sink.write(piece)

        copy_body(answer, write, self._policy, self._cancel, self._from(endpoint))

    def _start_of(self, answer: urllib3.BaseHTTPResponse, endpoint: Endpoint, there: int) -> int:
        """Return at which byte of the blob the answer's body starts: 0 or `there`."""
        if answer.status == 416:
            self._no_ranges.add(endpoint)
            text = f"{self._from(endpoint)}: it has no byte {there}"
            raise Failure(Unavailable(text), transient=True)
        content_type = answer.headers.get("Content-Type", "").partition(";")[0].lower()
        if content_type == "text/html":
            raise Failure(
                Unavailable(
                    f"{self._from(endpoint)}: the answer is {content_type}, not a blob",
                    hint="see whether a proxy or a login page answers for the registry",
                )
            )
        if answer.status == 206:
            self._check_range(answer, endpoint, there)
            return there
        length, size = answer.headers.get("Content-Length", ""), self._descriptor.size
        if length.isdecimal() and int(length) != size:
            text = f"{self._from(endpoint)}: its size is {length} there, {size} in the manifest"
            raise Failure(DataLoss(text))
        return 0

    def _check_range(
        self, answer: urllib3.BaseHTTPResponse, endpoint: Endpoint, there: int
    ) -> None:
        """Check that a partial answer starts where it was asked to; it may end early."""
        said = answer.headers.get("Content-Range", "")
        sizes = {"*", str(self._descriptor.size)}
        match = _CONTENT_RANGE.fullmatch(said.strip())
        if match is None or int(match[1]) != there or match[2] not in sizes:
            text = f"{self._from(endpoint)}: asked from byte {there} on, it sent {said[:80]!r}"
            raise Failure(Unavailable(text))

    def _from(self, endpoint: Endpoint) -> str:
        return f"{self._what} from {endpoint.host}"

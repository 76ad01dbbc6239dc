"""The answer to a call, on the client: messages, then a status."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lamina.api.headers import Fields
from lamina.api.http2 import ErrorCode
from lamina.api.message import PREFIX_SIZE, message_size
from lamina.api.status import OK, UNKNOWN, decode_message, from_status
from lamina.errors import (
    Cancelled,
    Internal,
    LaminaError,
    NotImplementedHere,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)

_BY_HTTP_STATUS: Mapping[str, type[LaminaError]] = {
    "400": Internal,
    "401": Unauthenticated,
    "403": PermissionDenied,
    "404": NotImplementedHere,
    "429": Unavailable,
    "502": Unavailable,
    "503": Unavailable,
    "504": Unavailable,
}
_BY_RESET: Mapping[int, type[LaminaError]] = {
    ErrorCode.CANCEL: Cancelled,
    ErrorCode.ENHANCE_YOUR_CALM: ResourceExhausted,
    ErrorCode.INADEQUATE_SECURITY: PermissionDenied,
}


class Response:
    """What has come of it so far.

    Attributes:
        is_over: nothing more will come.
        error: the status, if it is over and not OK.
    """

    def __init__(self, method: str) -> None:
        self.is_over = False
        self.error: LaminaError | None = None
        self._method = method
        self._encoding: str | None = None  # None before the head
        self._body = bytearray()

    def add_fields(self, fields: Fields, *, ends: bool) -> None:
        """Take the head, or the trailers, or both in one (`ends`)."""
        values = dict(fields)
        status = values.get(":status", "")
        if ends:
            self._end(self._status_error(values))
        elif self._encoding is None and not status.startswith("1"):
            if status != "200" or not values.get("content-type", "").startswith("application/grpc"):
                self._end(self._http_error(values))
            self._encoding = values.get("grpc-encoding", "")

    def add_data(self, data: bytes, *, ends: bool) -> None:
        """Take a piece of the messages."""
        self._body += data
        if ends:
            self._end(Internal("call", self._method, hint="the answer has no status"))

    def add_reset(self, code: int) -> None:
        """Take note that the server has given up."""
        kind = _BY_RESET.get(code, Internal)
        self._end(kind("call", self._method, hint=f"the server has reset it, HTTP/2 error {code}"))

    def messages(self) -> Iterator[bytes]:
        """Yield, and forget, the messages that are complete.

        Raises:
            ResourceExhausted: one is too large.
            NotImplementedHere: one is compressed.
        """
        while len(self._body) >= PREFIX_SIZE:
            end = PREFIX_SIZE + message_size(self._body, self._encoding or "")
            if len(self._body) < end:
                return
            message = bytes(memoryview(self._body)[PREFIX_SIZE:end])
            del self._body[:end]
            yield message

    def _end(self, error: LaminaError | None) -> None:
        if self.is_over:
            return  # a reset after the status only says that the request was not read to its end
        self.is_over = True
        self.error = error

    def _status_error(self, values: Mapping[str, str]) -> LaminaError | None:
        status = values.get("grpc-status")
        if status is None:
            return self._http_error(values)
        code = int(status) if status.isascii() and status.isdigit() else UNKNOWN
        text = decode_message(values.get("grpc-message", ""))
        return None if code == OK else from_status(code, text)

    def _http_error(self, values: Mapping[str, str]) -> LaminaError:
        status = values.get(":status", "none")
        kind = _BY_HTTP_STATUS.get(status, LaminaError)
        what = f"HTTP status {status}, content type {values.get('content-type', 'none')}"
        return kind("call", self._method, hint=f"the answer is not gRPC: {what}")

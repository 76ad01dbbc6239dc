"""What the server and the handlers of its methods know of each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, cast, overload

from lamina.core.cancel import CancelToken


@dataclass(frozen=True, slots=True)
class Call:
    """What a handler is told of the call beside its request.

    Attributes:
        metadata: the request's header fields by lower-case name, `-bin` ones still in base64.
        token: cancelled when the client has given up, or is gone.
        peer: process that has opened the connection; 0 where this process cannot see it.
    """

    metadata: Mapping[str, str]
    token: CancelToken
    peer: int = 0

    @property
    def deadline(self) -> float | None:
        """When the client will have given up, in `time.monotonic()` seconds; None for never."""
        return self.token.deadline

    def check(self) -> None:
        """Return if the client still waits; else raise Cancelled or DeadlineExceeded."""
        self.token.check()


Handler = Callable[[bytes, Call], bytes]
StreamHandler = Callable[[bytes, Call], Iterator[bytes]]
Inline = Callable[[bytes], bool]


class Method:
    """One method of the server: one request, and one response or a stream of them.

    An error of the tree that a handler raises becomes the call's status, anything else INTERNAL.

    Args:
        handle: gets the serialised request, and returns or yields serialised responses.
        inline: run it on the event loop, always or where this says so of a request, without
            raising; only for what never waits for anything.
        stream: `handle` yields responses.
    """

    __slots__ = ("inline", "stream", "unary")

    @overload
    def __init__(self, handle: Handler, *, inline: bool | Inline = False) -> None: ...

    @overload
    def __init__(self, handle: StreamHandler, *, stream: Literal[True]) -> None: ...

    def __init__(
        self,
        handle: Handler | StreamHandler,
        *,
        inline: bool | Inline = False,
        stream: bool = False,
    ) -> None:
        self.inline = inline
        self.unary = None if stream else cast(Handler, handle)
        self.stream = cast(StreamHandler, handle) if stream else None

    def is_inline(self, request: bytes) -> bool:
        """Tell whether to answer this request on the event loop."""
        return self.inline if isinstance(self.inline, bool) else self.inline(request)

    def on_thread(self) -> Method:
        """Return the same method, never run on the event loop."""
        if self.stream is not None:
            return Method(self.stream, stream=True)
        assert self.unary is not None
        return Method(self.unary)

"""The receiving half of flow control."""

from __future__ import annotations

from lamina.api.http2 import ConnectionFault, ErrorCode


class ReceiveWindow:
    """Bytes of DATA that the peer may send, of one stream or of the whole connection.

    Args:
        size: how many it may send before it has to wait, as it has been told.
    """

    __slots__ = ("_left", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._left = size

    def take(self, size: int) -> int:
        """Account for DATA that has come; return by how much to enlarge the window now, if at all.

        The peer is told not for each frame, but when half of the window is used up.

        Raises:
            ConnectionFault: that is more than the peer was allowed to send.
        """
        self._left -= size
        if self._left < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the window allows")
        if self._left > self._size // 2:
            return 0
        increment = self._size - self._left
        self._left = self._size
        return increment

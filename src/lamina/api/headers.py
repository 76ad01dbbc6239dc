"""Header blocks: HPACK (RFC 7541) as far as it pays.

What is sent is made of literals that enter no table: such a block is the same bytes whatever the
connection has seen before, so most are made once. What is received can use all of HPACK.
"""

from __future__ import annotations

from hpack import Decoder, HPACKError

from lamina.api.http2 import HEADER_LIST_LIMIT, ConnectionFault, ErrorCode

Fields = list[tuple[str, str]]

STATUS_200 = b"\x88"
METHOD_POST = b"\x83"
SCHEME_HTTP = b"\x86"
EMPTY_TABLE = b"\x20"
"""Goes before a block's first field: from here on the dynamic table has no room."""

_STATUS_NAME = b"\x08"


def literal(name: bytes, value: bytes) -> bytes:
    """Encode one field, not to be indexed and without Huffman coding."""
    return b"".join((b"\0", _length(name), name, _length(value), value))


def http_status(status: int) -> bytes:
    """Encode `:status`, which goes before all other fields."""
    return STATUS_200 if status == 200 else b"%c\x03%d" % (_STATUS_NAME, status)


def _length(text: bytes) -> bytes:
    """Encode the length of a string: an integer with a prefix of seven bits."""
    rest = len(text) - 0x7F
    if rest < 0:
        return bytes((len(text),))
    encoded = bytearray((0x7F,))
    while rest >= 0x80:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)


class HeaderDecoder:
    """Decodes the header blocks of one connection, in the order in which they arrive."""

    def __init__(self) -> None:
        self._decoder = Decoder(max_header_list_size=HEADER_LIST_LIMIT)

    def decode(self, block: bytes) -> Fields:
        """Return names and values; bytes beyond ASCII become characters of the same number.

        Raises:
            ConnectionFault: it is not HPACK, or too large; the tables are out of step then.
        """
        try:
            fields = self._decoder.decode(block, raw=True)
        except HPACKError as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, str(error)) from error
        return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in fields]

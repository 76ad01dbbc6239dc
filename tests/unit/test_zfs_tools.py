from __future__ import annotations

import pytest

from lamina.errors import FormatError
from lamina.tools.zfs import Pool, parse_pools

# As zfs 2.3.2 prints them.
POOLS = b"""\
tank\t13214105938520364381\t503316480\t162816\t503153664\t2\t0\tONLINE
gone\t99\t-\t-\t-\t-\t-\tFAULTED
"""


def test_pools() -> None:
    assert parse_pools(POOLS) == [
        Pool("tank", 13214105938520364381, 503316480, 162816, 503153664, 2, 0, "ONLINE"),
        Pool("gone", 99, 0, 0, 0, None, 0, "FAULTED"),
    ]
    assert parse_pools(b"") == []


@pytest.mark.parametrize("line", [b"tank\n", b"tank\tx\t1\t1\t1\t1\t1\tONLINE\n", b"\n"])
def test_what_are_no_pools(line: bytes) -> None:
    with pytest.raises(FormatError, match="zpool's list"):
        parse_pools(POOLS + line)

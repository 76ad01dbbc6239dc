from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lamina.errors import FailedPrecondition, ResourceExhausted
from lamina.linux.dm.thin import PoolMode, PoolStatus
from lamina.snapshotters.devmapper.health import Health

GIB = 1 << 30
BLOCK = 64 << 10
GOOD = PoolStatus(
    PoolMode.READ_WRITE,
    used_metadata=100,
    total_metadata=1000,
    used_data=1000,
    total_data=100 * GIB // BLOCK,
)


def health(status: PoolStatus) -> Health:
    return Health("devpool", status, block_bytes=BLOCK)


def test_good_pool() -> None:
    health(GOOD).require_room()
    health(GOOD).require_writable()
    assert not health(GOOD).filling
    assert str(health(GOOD)) == ("data 0.1% used, 99.9 GiB free, metadata 10.0% used, 3.5 MiB free")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"used_data": (96 * GIB) // BLOCK + 1}, "low on data: data 96.0% used, 4.0 GiB free, me"),
        ({"used_metadata": 901}, "low on metadata: data 0.1% used, .*metadata 90.1% used, 396.0 K"),
        (
            {"used_data": 100 * GIB // BLOCK, "used_metadata": 1000},
            "low on data and metadata: data 100.0% used, 0.0 B free, metadata 100.0% used, 0.0 B",
        ),
    ],
)
def test_watermarks(changes: dict[str, Any], what: str) -> None:
    pool = health(replace(GOOD, **changes))
    with pytest.raises(ResourceExhausted, match=what) as failure:
        pool.require_room()
    assert "extend the pool" in failure.value.hint
    assert pool.filling
    pool.require_writable()


@pytest.mark.parametrize("changes", [{"used_data": 96 * GIB // BLOCK}, {"used_metadata": 900}])
def test_just_above_the_watermarks(changes: dict[str, Any]) -> None:
    health(replace(GOOD, **changes)).require_room()


@pytest.mark.parametrize(
    ("changes", "error", "what"),
    [
        ({"mode": PoolMode.OUT_OF_DATA_SPACE}, ResourceExhausted, "devpool, which is out of data"),
        (
            {"mode": PoolMode.READ_ONLY},
            FailedPrecondition,
            "read-only: data 0.1% .*see dmesg; then",
        ),
        (
            {"mode": PoolMode.READ_ONLY, "needs_check": True},
            FailedPrecondition,
            "whose metadata needs a check: .*stop what uses it; then `lamina devmapper check`",
        ),
        ({"needs_check": True}, FailedPrecondition, "needs a check"),
    ],
)
def test_pool_that_refuses(changes: dict[str, Any], error: type[Exception], what: str) -> None:
    pool = health(replace(GOOD, **changes))
    for require in (pool.require_room, pool.require_writable):
        with pytest.raises(error, match=what):
            require()


@pytest.mark.parametrize("mode", [PoolMode.FAILED, PoolMode.UNKNOWN])
def test_pool_of_which_nothing_is_known(mode: PoolMode) -> None:
    with pytest.raises(FailedPrecondition, match="which has failed: nothing is known"):
        health(PoolStatus(mode)).require_room()

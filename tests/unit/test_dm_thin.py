from __future__ import annotations

import os

import pytest

from lamina.errors import FormatError
from lamina.linux.dm import Target, thin
from lamina.linux.dm.thin import PoolMode, PoolStatus, ThinStatus


def test_tables() -> None:
    pool = thin.pool_target(
        sectors=204800, metadata="7:1", data="/dev/loop0", block_sectors=128, low_water=32768
    )
    params = "7:1 /dev/loop0 128 32768 1 skip_block_zeroing"
    assert pool == Target(0, 204800, "thin-pool", params)
    bare = thin.pool_target(
        sectors=8, metadata="7:1", data="7:0", block_sectors=128, low_water=0, features=()
    )
    assert bare.params == "7:1 7:0 128 0 0"
    device = thin.thin_target(pool=os.makedev(253, 300), device_id=7, sectors=2048)
    assert device == Target(0, 2048, "thin", "253:300 7")


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (
            "0 111/1024 0/4096 - rw discard_passdown queue_if_no_space - 256",
            PoolStatus(
                *(PoolMode.READ_WRITE, 0, 111, 1024, 0, 4096),
                metadata_low_water=256,
                discards="discard_passdown",
            ),
        ),
        (
            "12 9/10 4096/4096 77 out_of_data_space no_discard_passdown error_if_no_space"
            " needs_check 1024",
            PoolStatus(
                mode=PoolMode.OUT_OF_DATA_SPACE,
                transaction_id=12,
                used_metadata=9,
                total_metadata=10,
                used_data=4096,
                total_data=4096,
                held_root=77,
                fails_when_full=True,
                needs_check=True,
                metadata_low_water=1024,
                discards="no_discard_passdown",
            ),
        ),
        (  # a kernel before 4.20
            "1 5/10 6/20 - ro ignore_discard queue_if_no_space -",
            PoolStatus(PoolMode.READ_ONLY, 1, 5, 10, 6, 20, discards="ignore_discard"),
        ),
        (  # a kernel before 4.3
            "1 5/10 6/20 - ro ignore_discard queue_if_no_space",
            PoolStatus(PoolMode.READ_ONLY, 1, 5, 10, 6, 20, discards="ignore_discard"),
        ),
        ("Fail", PoolStatus(PoolMode.FAILED)),
        ("Error", PoolStatus(PoolMode.UNKNOWN)),
    ],
)
def test_status_of_a_pool(text: str, status: PoolStatus) -> None:
    assert thin.parse_pool_status(text) == status


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0 128",
        "x 5/10 6/20 - rw discard_passdown queue_if_no_space -",
        "1 5/10/3 6/20 - rw discard_passdown queue_if_no_space -",
        "1 5/10 6/20 - fine discard_passdown queue_if_no_space -",
        "1 5/10 6/20 - rw discard_passdown",
    ],
)
def test_what_is_no_status_of_a_pool(text: str) -> None:
    with pytest.raises(FormatError, match="thin-pool status"):
        thin.parse_pool_status(text)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("0 -", ThinStatus()),
        ("17280 204799", ThinStatus(17280, 204799)),
        ("Fail", ThinStatus(failed=True)),
        ("Error", ThinStatus(failed=True)),
    ],
)
def test_status_of_a_thin_device(text: str, status: ThinStatus) -> None:
    assert thin.parse_thin_status(text) == status


@pytest.mark.parametrize("text", ["", "-", "1 2 3", "a b"])
def test_what_is_no_status_of_a_thin_device(text: str) -> None:
    with pytest.raises(FormatError, match="thin status"):
        thin.parse_thin_status(text)


def test_table_of_a_pool_comes_back() -> None:
    target = thin.pool_target(
        sectors=1 << 20,
        metadata="7:1",
        data="7:0",
        block_sectors=128,
        low_water=9,
        features=("skip_block_zeroing", "error_if_no_space"),
    )
    table = thin.parse_pool_table(target.params)
    assert table == ("7:1", "7:0", 128, 9, ("skip_block_zeroing", "error_if_no_space"))
    assert thin.parse_pool_table("7:1 7:0 128 0 0").features == ()
    for bad in ("", "7:1 7:0 128", "7:1 7:0 128 0 x"):
        with pytest.raises(FormatError):
            thin.parse_pool_table(bad)

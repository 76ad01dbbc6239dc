from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from lamina.snapshotters.devmapper.devices import FIRST_DEVICE_ID, RANGE, Devices
from lamina.snapshotters.devmapper.leases import Lease, Leases, build, parse
from lamina.snapshotters.devmapper.pool import Pool


def test_lease_is_one_block_and_reads_as_written() -> None:
    lease = Lease("0123456789abcdef", "/var/lib/lamina/\u00e4 \n x")
    assert len(build(lease)) == 4096
    assert parse(build(lease)) == lease


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(4096),
        b"lamina devmapper lease\n",
        b"lamina devmapper lease\nno JSON\n",
        b'lamina devmapper lease\n{"other": 1}\n',
        b"lamina devmapper lease\n[]\n",
    ],
)
def test_what_is_no_lease_has_no_owner(content: bytes) -> None:
    assert parse(content) == Lease()


def test_ranges_in_which_older_rows_are_stay_unlet(tmp_path: Path) -> None:
    devices = Devices(tmp_path / "devices.sqlite")
    devices.begin_range(FIRST_DEVICE_ID + RANGE)
    with devices._database.write() as connection:
        connection.execute(
            "INSERT INTO devices (device, snapshot, sectors, filesystem) VALUES (?, 7, 8, 'ext4')",
            (FIRST_DEVICE_ID + 5,),
        )
    leases = Leases(cast(Pool, None), devices, tmp_path)
    starts = leases._starts()
    assert len(starts) == len(set(starts)) == 239
    assert FIRST_DEVICE_ID not in starts
    devices.close()

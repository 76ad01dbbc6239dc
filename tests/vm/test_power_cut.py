"""What is on a pool's disks after a power cut: the pattern of tests that take several boots."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.vm.replay import REPOSITORY
from tests.vm.uml import Machine

pytestmark = pytest.mark.uml

MIB = 1 << 20
POOL = """
import os, sys, time
from pathlib import Path
from lamina.linux.dm import SECTOR, DeviceMapper, node, thin

MIB = 1 << 20
dm = DeviceMapper()
target = thin.pool_target(
    sectors=64 * MIB // SECTOR,
    metadata="/dev/ubda",
    data="/dev/ubdb",
    block_sectors=128,
    low_water=0,
)
pool = dm.activate("pool", [target]).number

def activate(device_id):
    target = thin.thin_target(pool=pool, device_id=device_id, sectors=MIB // SECTOR)
    dm.activate(f"thin{device_id}", [target])
    return node(f"thin{device_id}")
"""
BEFORE = f"""
{POOL}
thin.create_thin(dm, "pool", 1)
with activate(1).open("r+b", buffering=0) as file:
    file.write(b"synced".ljust(4096))
    os.fsync(file.fileno())
    dm.suspend("thin1")
    thin.create_snap(dm, "pool", 2, 1)
    dm.resume("thin1")
    thin.set_transaction_id(dm, "pool", current=0, new=5)
    flag = os.open("/run/shared/done", os.O_CREAT | os.O_WRONLY)
    os.fsync(flag)
    time.sleep(60)
"""
AFTER = f"""
{POOL}
status = thin.pool_status(dm, "pool")
assert status.mode is thin.PoolMode.READ_WRITE, status
assert status.transaction_id == 5, status
for device_id in (1, 2):
    assert activate(device_id).read_bytes().startswith(b"synced"), device_id
"""


def _machine(directory: Path, program: str, disks: list[Path]) -> Machine:
    directory.mkdir()
    return Machine(directory, (sys.executable, "-c", program), disks=disks, cwd=REPOSITORY)


def test_a_pool_keeps_what_its_messages_did(tmp_path: Path) -> None:
    disks = [tmp_path / "metadata", tmp_path / "data"]
    for disk, size in zip(disks, (4 * MIB, 64 * MIB), strict=True):
        with disk.open("wb") as file:
            file.truncate(size)
    with _machine(tmp_path / "before", BEFORE, disks) as machine:
        while not (machine.shared / "done").exists() and machine.running():
            time.sleep(0.05)
        assert machine.running(), machine.console()
    with _machine(tmp_path / "after", AFTER, disks) as machine:
        assert machine.wait() == 0, machine.console()

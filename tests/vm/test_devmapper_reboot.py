"""Pools after a power cut: both recipes, set up in one boot and activated in the next."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.vm.replay import REPOSITORY
from tests.vm.uml import Machine

pytestmark = pytest.mark.uml

MIB = 1 << 20
SETUP = """
import subprocess, sys
from pathlib import Path

def lamina(*words):
    root = ("--root", "/run/pools/root")
    subprocess.run((LAMINA, *root, "devmapper", *words), check=True)

def thin(pool, *, new):
    if new:
        subprocess.run(("dmsetup", "message", pool, "0", "create_thin 1"), check=True)
    table = f"0 32768 thin /dev/mapper/{pool} 1"
    subprocess.run(("dmsetup", "create", f"{pool}-snap-1", "--table", table), check=True)
    return Path(f"/dev/mapper/{pool}-snap-1")

POOLS = ("loop", "vg-lvm")
LAMINA = str(Path(sys.executable).with_name("lamina"))
Path("/run/pools").mkdir()
subprocess.run(("mount", "-t", "ext4", "/dev/ubda", "/run/pools"), check=True)
"""
BEFORE = f"""
{SETUP}
import os, time

lamina("setup", "--loop", "--pool", "loop", "--data-size", "64M", "--meta-size", "4M")
lamina("setup", "--device", "/dev/ubdb", "--vg", "vg", "--pool", "lvm")
for pool in POOLS:
    with thin(pool, new=True).open("r+b", buffering=0) as file:
        file.write(pool.encode().ljust(4096))
        os.fsync(file.fileno())
profiles = list(Path("/etc/lvm/profile").glob("lamina-*"))
assert profiles
flag = os.open("/run/shared/done", os.O_CREAT | os.O_WRONLY)
os.fsync(flag)
time.sleep(60)
"""
AFTER = f"""
{SETUP}
lamina("activate")
for pool in POOLS:
    assert thin(pool, new=False).read_bytes().startswith(pool.encode()), pool
    lamina("status", "--pool", pool)
# What is set up needs no more than to be found.
lamina("setup", "--loop", "--pool", "loop", "--data-size", "64M", "--meta-size", "4M")
for pool in POOLS:
    lamina("deactivate", "--pool", pool)
    lamina("check", "--pool", pool)
    lamina("teardown", "--pool", pool, "--force")
assert not list(Path("/sys/block").glob("dm-*"))
"""


def _machine(directory: Path, program: str, disks: list[Path]) -> Machine:
    directory.mkdir()
    return Machine(directory, (sys.executable, "-c", program), disks=disks, cwd=REPOSITORY)


def test_pools_come_back_after_a_power_cut(tmp_path: Path) -> None:
    disks = [tmp_path / "files", tmp_path / "lvm"]
    for disk in disks:
        with disk.open("wb") as file:
            file.truncate(256 * MIB)
    subprocess.run(("mkfs.ext4", "-q", "-F", disks[0]), check=True)
    with _machine(tmp_path / "before", BEFORE, disks) as machine:
        while not (machine.shared / "done").exists() and machine.running():
            time.sleep(0.05)
        assert machine.running(), machine.console()
    with _machine(tmp_path / "after", AFTER, disks) as machine:
        assert machine.wait() == 0, machine.console()

"""Power cuts while devmapper and blockfile work: boot after boot on the same disks."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.vm.cut_guest import JOURNAL
from tests.vm.replay import REPOSITORY
from tests.vm.uml import Machine

pytestmark = pytest.mark.uml

MIB = 1 << 20
SIZES = {"metadata": 4 * MIB, "data": 256 * MIB, "files": 256 * MIB}
CUTS = (23, 37)
"""How many lines a boot writes into the journal before it ends."""


def boot(directory: Path, turn: int, disks: list[Path], journal: str) -> Machine:
    directory.mkdir()
    command = (sys.executable, "-m", "tests.vm.cut_guest", str(turn), str(len(CUTS)))
    return Machine(directory, command, disks=disks, files={JOURNAL: journal}, cwd=REPOSITORY)


def test_power_cuts_while_snapshots_are_made(tmp_path: Path) -> None:
    disks = [tmp_path / name for name in SIZES]
    for disk, size in zip(disks, SIZES.values(), strict=True):
        with disk.open("wb") as file:
            file.truncate(size)
    subprocess.run(("mkfs.ext4", "-q", "-F", disks[-1]), check=True)
    journal = ""
    for turn, lines in enumerate(CUTS):
        with boot(tmp_path / f"boot-{turn}", turn, disks, journal) as machine:
            enough = journal.count("\n") + lines
            written = machine.shared / JOURNAL
            while written.read_text().count("\n") < enough:
                assert machine.running(), machine.console()
                time.sleep(0.05)
            machine.stop()
            journal = written.read_text()
    with boot(tmp_path / "last", len(CUTS), disks, journal) as machine:
        assert machine.wait() == 0, machine.console()

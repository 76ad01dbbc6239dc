"""containerd's own suite of snapshotter tests passes on zfs, through `lamina serve`.

The suite is built here and run in QEMU. Its tests share a daemon, which takes long to start there;
each finds it empty.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.containerd.test_suite import TESTS
from tests.fixtures_go import build_suite
from tests.vm.machine import SHARED_IN_GUEST
from tests.vm.qemu import Machine
from tests.vm.replay import REPOSITORY

pytestmark = [pytest.mark.qemu, pytest.mark.go]

LAMINA = Path(sys.executable).with_name("lamina")
# Called as `lamina --root ROOT serve ...`, and at the end as `lamina --root ROOT fsck`.
PROGRAM = """#!/bin/sh
if [ "$3" = serve ]; then
    mkdir -p "$2"
    zfs create -o "mountpoint=$2/io.containerd.snapshotter.v1.zfs" suite/lamina || exit
    exec LAMINA "$@"
fi
LAMINA "$@" && zfs destroy suite/lamina
"""
RUN = """
chmod +x {shared}/lamina
truncate -s 1G /run/tmp/suite
zpool create -o cachefile=none -m none suite /run/tmp/suite || exit
export LAMINA_SUITE_PROGRAM={shared}/lamina LAMINA_SUITE_SNAPSHOTTERS=zfs LAMINA_SUITE_SHARED=1
{suite} -test.v >{shared}/output 2>&1
code=$?
sync {shared}/output
exit $code
"""


def begin(directory: Path) -> Machine:
    """Run the suite."""
    files = {
        "lamina": PROGRAM.replace("LAMINA", str(LAMINA)),
        "run": RUN.format(shared=SHARED_IN_GUEST, suite=build_suite()),
        "output": "",
    }
    return Machine(directory, ("sh", SHARED_IN_GUEST / "run"), files=files, cwd=REPOSITORY)


@pytest.mark.ahead(begin=begin)
def test_containerds_suite(ended_machine: Machine) -> None:
    output = (ended_machine.shared / "output").read_text()
    assert ended_machine.wait() == 0, output + ended_machine.console()
    passed = {line.split()[2] for line in output.splitlines() if "--- PASS: " in line}
    assert passed >= {f"TestSnapshotter/zfs/{test}" for test in TESTS}

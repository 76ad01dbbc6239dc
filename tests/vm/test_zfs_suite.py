"""containerd's own suite of snapshotter tests passes on zfs, through `lamina serve`.

The suite is built here and run in QEMU; each of its tests has a daemon and a dataset of its own.
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

BOOTS = 2
"""Machines: a daemon takes long to start there."""
LAMINA = Path(sys.executable).with_name("lamina")
# Called as `lamina --root ROOT serve ...`, and at a test's end as `lamina --root ROOT fsck`.
PROGRAM = """#!/bin/sh
dataset=suite/$(basename "$(dirname "$2")" | tr -cd a-zA-Z0-9)
if [ "$3" != fsck ]; then
    mkdir -p "$2"
    zfs create -o "mountpoint=$2/io.containerd.snapshotter.v1.zfs" "$dataset" || exit
    exec LAMINA "$@"
fi
LAMINA "$@"
code=$?
# The daemon's janitor may still be at work there.
tries=60
until said=$(zfs destroy -R "$dataset" 2>&1); do
    tries=$((tries - 1))
    [ $tries -gt 0 ] || { echo "$said"; break; }
    sleep 1
done
exit $code
"""
RUN = """
chmod +x {shared}/lamina
truncate -s 1G /run/tmp/suite
zpool create -o cachefile=none -m none suite /run/tmp/suite || exit
export LAMINA_SUITE_PROGRAM={shared}/lamina LAMINA_SUITE_SNAPSHOTTERS=zfs
{suite} -test.v -test.run '^TestSnapshotter$/^zfs$/^({tests})$' >{shared}/output 2>&1
code=$?
sync {shared}/output
exit $code
"""


def begin(directory: Path, *, part: int) -> Machine:
    """Run a part of the suite."""
    files = {
        "lamina": PROGRAM.replace("LAMINA", str(LAMINA)),
        "run": RUN.format(
            shared=SHARED_IN_GUEST, suite=build_suite(), tests="|".join(TESTS[part::BOOTS])
        ),
        "output": "",
    }
    return Machine(directory, ("sh", SHARED_IN_GUEST / "run"), files=files, cwd=REPOSITORY)


@pytest.mark.ahead(begin=begin)
@pytest.mark.parametrize("part", range(BOOTS))
def test_containerds_suite(part: int, ended_machine: Machine) -> None:
    output = (ended_machine.shared / "output").read_text()
    assert ended_machine.wait() == 0, output + ended_machine.console()
    passed = {line.split()[2] for line in output.splitlines() if "--- PASS: " in line}
    assert passed >= {f"TestSnapshotter/zfs/{test}" for test in TESTS[part::BOOTS]}

"""containerd's own suite of snapshotter tests passes on devmapper, through `lamina serve`.

The suite is built here and run in virtual machines. Its tests share a daemon, which takes some
seconds to start there, and a pool; each finds them empty.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.containerd.test_suite import TESTS
from tests.fixtures_go import build_suite
from tests.vm.machine import SHARED_IN_GUEST
from tests.vm.replay import REPOSITORY
from tests.vm.uml import Machine

pytestmark = [pytest.mark.uml, pytest.mark.go]

SIZES = {"ext4": "64MiB", "xfs": "300MiB"}
LAMINA = Path(sys.executable).with_name("lamina")
# Called as `lamina --root ROOT serve ...`, and at the end as `lamina --root ROOT fsck`.
PROGRAM = """#!/bin/sh
files=$(dirname "$2")
config=$files/config.toml
if [ "$3" = serve ]; then
    truncate -s 512M "$files/data"
    truncate -s 8M "$files/metadata"
    data=$(losetup --find --show "$files/data")
    metadata=$(losetup --find --show "$files/metadata")
    table="0 1048576 thin-pool $metadata $data 128 0 1 skip_block_zeroing"
    dmsetup create suite --table "$table" || exit
    cat >"$config" <<END
version = 3
[plugins."io.containerd.snapshotter.v1.devmapper"]
  pool_name = "suite"
  base_image_size = "SIZE"
  fs_type = "FILESYSTEM"
END
    exec LAMINA --config "$config" "$@"
fi
LAMINA --config "$config" "$@" && dmsetup remove suite
"""
RUN = """
chmod +x {shared}/lamina
export LAMINA_SUITE_PROGRAM={shared}/lamina LAMINA_SUITE_SNAPSHOTTERS=devmapper
export LAMINA_SUITE_SHARED=1
{suite} -test.v >{shared}/output 2>&1
code=$?
sync {shared}/output
exit $code
"""


def begin(directory: Path, *, filesystem: str) -> Machine:
    """Run the suite."""
    program = PROGRAM.replace("SIZE", SIZES[filesystem]).replace("FILESYSTEM", filesystem)
    files = {
        "lamina": program.replace("LAMINA", str(LAMINA)),
        "run": RUN.format(shared=SHARED_IN_GUEST, suite=build_suite()),
        "output": "",
    }
    return Machine(directory, ("sh", SHARED_IN_GUEST / "run"), files=files, cwd=REPOSITORY)


@pytest.mark.ahead(begin=begin)
@pytest.mark.parametrize("filesystem", SIZES)
def test_containerds_suite(filesystem: str, ended_machine: Machine) -> None:
    output = (ended_machine.shared / "output").read_text()
    assert ended_machine.wait() == 0, output
    passed = {line.split()[2] for line in output.splitlines() if "--- PASS: " in line}
    assert passed >= {f"TestSnapshotter/devmapper/{test}" for test in TESTS}

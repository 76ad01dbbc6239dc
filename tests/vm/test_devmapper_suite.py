"""containerd's own suite of snapshotter tests passes on devmapper, through `lamina serve`.

The suite is built here and run in virtual machines; each of its tests has a daemon and a pool of
its own.
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
BOOTS = 2
"""Machines for one filesystem: a daemon takes some seconds to start there."""
LAMINA = Path(sys.executable).with_name("lamina")
# Called as `lamina --root ROOT serve ...`, and at a test's end as `lamina --root ROOT fsck`.
PROGRAM = """#!/bin/sh
files=$2.pool
pool=pool-$(basename "$(dirname "$2")" | tr -cd a-zA-Z0-9)
config=$files/config.toml
if [ ! -e "$config" ]; then
    mkdir -p "$files"
    truncate -s 512M "$files/data"
    truncate -s 8M "$files/metadata"
    data=$(losetup --find --show "$files/data")
    metadata=$(losetup --find --show "$files/metadata")
    table="0 1048576 thin-pool $metadata $data 128 0 1 skip_block_zeroing"
    dmsetup create "$pool" --table "$table" || exit
    cat >"$config" <<END
version = 3
[plugins."io.containerd.snapshotter.v1.devmapper"]
  pool_name = "$pool"
  base_image_size = "SIZE"
  fs_type = "FILESYSTEM"
END
fi
if [ "$3" != fsck ]; then
    exec LAMINA --config "$config" "$@"
fi
LAMINA --config "$config" "$@"
code=$?
for device in $(dmsetup ls | cut -f 1 | grep "^$pool-") $pool; do
    dmsetup remove "$device" >/dev/null
done
losetup --list --noheadings --output NAME,BACK-FILE | grep " $files/" | cut -d ' ' -f 1 |
    xargs -r losetup --detach
rm -f "$files/data" "$files/metadata"
exit $code
"""
RUN = """
chmod +x {shared}/lamina
export LAMINA_SUITE_PROGRAM={shared}/lamina LAMINA_SUITE_SNAPSHOTTERS=devmapper
{suite} -test.v -test.run '^TestSnapshotter$/^devmapper$/^({tests})$' >{shared}/output 2>&1
code=$?
sync {shared}/output
exit $code
"""


def begin(directory: Path, *, filesystem: str, part: int) -> Machine:
    """Run a part of the suite."""
    program = PROGRAM.replace("SIZE", SIZES[filesystem]).replace("FILESYSTEM", filesystem)
    tests = "|".join(TESTS[part::BOOTS])
    files = {
        "lamina": program.replace("LAMINA", str(LAMINA)),
        "run": RUN.format(shared=SHARED_IN_GUEST, suite=build_suite(), tests=tests),
        "output": "",
    }
    return Machine(directory, ("sh", SHARED_IN_GUEST / "run"), files=files, cwd=REPOSITORY)


@pytest.mark.ahead(begin=begin)
@pytest.mark.parametrize("part", range(BOOTS))
@pytest.mark.parametrize("filesystem", SIZES)
def test_containerds_suite(filesystem: str, part: int, ended_machine: Machine) -> None:
    output = (ended_machine.shared / "output").read_text()
    assert ended_machine.wait() == 0, output
    passed = {line.split()[2] for line in output.splitlines() if "--- PASS: " in line}
    assert passed >= {f"TestSnapshotter/devmapper/{test}" for test in TESTS[part::BOOTS]}

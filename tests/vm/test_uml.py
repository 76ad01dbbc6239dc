"""The harness: another kernel that runs tests, and of which nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests import probes
from tests.isolation import runs
from tests.vm.machine import MachineError
from tests.vm.replay import REPOSITORY
from tests.vm.uml import Machine

pytestmark = pytest.mark.uml

SAMPLES = "tests/vm/samples.py"
WRITE = """
    exec 3</dev/ubda  # whoever closes a device last writes back what is cached of it
    dd if=/dev/zero bs=4096 count=1 | tr '\\0' S | dd of=/dev/ubda bs=4096 conv=notrunc,fsync
    dd if=/dev/zero bs=4096 count=1 | tr '\\0' U | dd of=/dev/ubda bs=4096 conv=notrunc seek=9
    echo yes >/run/shared/written
    sync /run/shared/written
    sleep 60
"""
# Until the guest is up, its kernel tries out what the host can do, in a process that it leaves
# behind when it is ended just then.
STARTER = """
import sys, time
from pathlib import Path
from tests.vm.uml import Machine
command = ("sh", "-c", "echo >/run/shared/up; sleep 60")
with Machine(Path(sys.argv[1]), command) as machine:
    while not (machine.shared / "up").exists():
        time.sleep(0.05)
    print("started", flush=True)
    time.sleep(60)
"""


def _processes(directory: Path) -> list[int]:
    """Return the living processes of the machine that was made in `directory`."""
    found = subprocess.run(("pgrep", "-f", f"uml_dir={directory}"), capture_output=True, text=True)
    return [process for process in map(int, found.stdout.split()) if runs(process)]


def _wait_until_gone(directory: Path) -> list[int]:
    deadline = time.monotonic() + 10
    while (left := _processes(directory)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def test_exit_code_console_and_the_hosts_files(tmp_path: Path) -> None:
    script = "cat /run/shared/note; touch ./made /etc/made && exit 7"
    command = ("sh", "-c", script)
    machine_directory = tmp_path / "machine"
    machine_directory.mkdir()
    with Machine(machine_directory, command, files={"note": "hello\n"}, cwd=tmp_path) as machine:
        assert machine.wait() == 7
        assert "hello" in machine.console()
    assert not Path("/etc/made").exists()
    assert not (tmp_path / "made").exists()
    assert not _processes(machine_directory)


def test_machine_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    with (
        Machine(tmp_path, ("sleep", "60"), limit_seconds=4) as machine,
        pytest.raises(MachineError, match="no end after 4 s"),
    ):
        machine.wait()
    assert not _processes(tmp_path)


def test_kernel_that_crashes_ends_the_machine(tmp_path: Path) -> None:
    with Machine(tmp_path, ("sh", "-c", "echo c >/proc/sysrq-trigger; sleep 60")) as machine:
        with pytest.raises(MachineError, match="in the middle"):
            machine.wait()
        assert "sysrq triggered crash" in machine.console()
    assert not _processes(tmp_path)


def test_disk_keeps_what_was_synced_when_the_power_is_cut(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(1 << 20)
    with Machine(tmp_path, ("sh", "-c", WRITE), disks=[disk]) as machine:
        while not (machine.shared / "written").exists() and machine.running():
            time.sleep(0.05)
        assert machine.running(), machine.console()
    content = disk.read_bytes()
    assert content.count(b"S") == 4096
    assert b"U" not in content
    again = tmp_path / "again"
    again.mkdir()
    with Machine(again, ("grep", "-q", "SSSS", "/dev/ubda"), disks=[disk]) as machine:
        assert machine.wait() == 0


def test_machine_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    argv = (sys.executable, "-c", STARTER, tmp_path)
    with subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        starter.stdout.readline()
        assert _processes(tmp_path)
        starter.send_signal(signal.SIGKILL)
    assert not _wait_until_gone(tmp_path)


def _outcomes(junit: Path) -> dict[str, str]:
    cases = ElementTree.parse(junit).iter("testcase")
    return {case.get("name", ""): next((part.tag for part in case), "passed") for case in cases}


@pytest.mark.skipif(not probes.device_mapper(), reason="device-mapper is here: none is needed")
def test_every_test_inside_is_a_test_outside(tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    argv = (
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        SAMPLES,
        f"--junitxml={junit}",
    )
    environ = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}
    done = subprocess.run(argv, cwd=REPOSITORY, env=environ, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert _outcomes(junit) == {
        "test_passes[plain]": "passed",
        "test_passes[a::b [c] d]": "passed",
        "test_fails": "failure",
        "test_skips": "skipped",
        "test_is_expected_to_fail": "skipped",
        "test_cannot_start": "error",
        "test_ends_before": "passed",
        "test_ends_the_machine": "failure",
        "test_never_starts": "failure",
    }
    assert "said before" in done.stdout
    assert "console of the virtual machine" in done.stdout
    assert f"while it ran {SAMPLES}::test_ends_the_machine" in done.stdout
    assert not list(tmp_path.glob("lamina-test-*"))

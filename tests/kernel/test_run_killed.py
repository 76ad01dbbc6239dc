"""SIGKILL in the middle: whatever is killed, the next command works and nothing stays."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time

import pytest

from tests.fixtures_containers import Machine, alive, wait_for

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.overlay]


def _processes(pattern: str) -> list[int]:
    done = subprocess.run(["pgrep", "-f", pattern], capture_output=True, check=False)
    return [int(pid) for pid in done.stdout.split()]


def test_container_outlives_a_killed_command(machine: Machine) -> None:
    process = machine.start("run", "--rm", "busybox", machine.id, "sleep", "1000")
    wait_for(machine.running)
    process.kill()
    process.wait()
    assert machine.tasks()[machine.id][1] == "RUNNING"
    assert machine.lamina("tasks", "exec", machine.id, "echo", "in").stdout == "in\n"
    machine.lamina("tasks", "kill", "-s", "KILL", machine.id)
    # The runtime that is still there clears up its own state; then any listing does the rest.
    wait_for(lambda: not _processes(f"run --bundle {machine.root}"))
    assert machine.lamina("containers", "ls", "-q").stdout == ""
    assert machine.leftovers() == []


def test_killed_command_and_killed_runtime(machine: Machine) -> None:
    process = machine.start("run", "--rm", "busybox", machine.id, "sleep", "1000")
    wait_for(machine.running)
    pid, _ = machine.tasks()[machine.id]
    process.kill()
    process.wait()
    for runtime in _processes(f"run --bundle {machine.root}"):
        os.kill(runtime, signal.SIGKILL)
    assert machine.tasks()[machine.id] == (pid, "RUNNING")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(pid))
    assert machine.run("echo", "again").stdout == "again\n"
    assert machine.leftovers() == []


def test_container_outlives_its_supervisor(machine: Machine) -> None:
    machine.lamina("run", "-d", "busybox", machine.id, "sleep", "1000")
    (shim,) = _processes(f"lamina.runtime.shim .*{machine.id}")
    os.kill(shim, signal.SIGKILL)
    wait_for(lambda: not alive(shim))
    pid, status = machine.tasks()[machine.id]
    assert status == "RUNNING"
    machine.lamina("containers", "rm", machine.id, code=7)
    machine.lamina("tasks", "kill", "-s", "KILL", machine.id)
    wait_for(lambda: machine.tasks()[machine.id] == (pid, "STOPPED"))
    machine.lamina("tasks", "rm", machine.id, code=255)
    machine.lamina("containers", "rm", machine.id)
    assert machine.leftovers() == []


def test_killed_at_random_moments(machine: Machine) -> None:
    chance = random.Random(20)
    for _ in range(25):
        process = machine.start("run", "--rm", "busybox", machine.id, "sleep", "0.05")
        time.sleep(chance.uniform(0.05, 0.7))
        process.kill()
        process.wait()
        # What was started goes on to its end by itself; before it has become another program, it
        # has the command's own arguments.
        wait_for(lambda: not _processes(str(machine.root)))
        assert machine.run("echo", "works").stdout == "works\n"
        assert machine.leftovers() == []


def test_terminated_command_leaves_nothing(machine: Machine) -> None:
    chance = random.Random(21)
    for _ in range(15):
        command = "trap 'exit 0' TERM; while :; do sleep 0.01; done"
        process = machine.start("run", "--rm", "busybox", machine.id, "sh", "-c", command)
        time.sleep(chance.uniform(0.05, 0.7))
        process.terminate()
        if not machine.tasks():
            process.wait(10)
        while process.poll() is None:
            process.terminate()
            time.sleep(0.05)
        assert machine.leftovers() == []

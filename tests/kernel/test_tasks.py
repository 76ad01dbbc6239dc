"""Detached containers and the `tasks` verbs, with a real runtime."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from lamina.runtime.oci_runtime import OciRuntime, find_runtime
from tests.archives import gnu_tar
from tests.fixtures_containers import WAIT_SECONDS, Machine, alive, wait_for

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.overlay]


@pytest.fixture
def sleeping(machine: Machine) -> Machine:
    """A machine whose container sleeps in the background."""
    done = machine.lamina("run", "-d", "busybox", machine.id, "sleep", "1000")
    assert (done.stdout, done.stderr) == ("", "")
    return machine


def test_life_of_a_detached_container(sleeping: Machine) -> None:
    id = sleeping.id
    pid, status = sleeping.tasks()[id]
    assert status == "RUNNING"
    command = Path(f"/proc/{pid}/cmdline")
    wait_for(lambda: command.read_bytes() == b"sleep\x001000\x00")  # the runtime's own, at first
    table = sleeping.lamina("tasks", "ls").stdout.splitlines()
    widths = (len(id) + 4, len(str(pid)) + 4, len("RUNNING") + 4)
    rows = (("TASK", "PID", "STATUS"), (id, str(pid), "RUNNING"))
    assert table == ["".join(map(str.ljust, row, widths)) for row in rows]
    assert sleeping.lamina("tasks", "ls", "-q").stdout == f"{id}\n"
    sleeping.lamina("containers", "rm", id, code=7)
    sleeping.lamina("tasks", "rm", id, code=7)
    sleeping.lamina("tasks", "kill", "-s", "SIGKILL", id)
    wait_for(lambda: sleeping.tasks()[id] == (pid, "STOPPED"))
    assert not alive(pid)
    sleeping.lamina("tasks", "rm", id, code=128 + signal.SIGKILL)
    assert sleeping.tasks() == {}
    sleeping.lamina("tasks", "rm", id, code=3)
    sleeping.lamina("containers", "rm", id)
    assert sleeping.leftovers() == []


def test_stopped_container_is_removed_with_its_task(machine: Machine) -> None:
    machine.lamina("run", "-d", "busybox", machine.id, "sh", "-c", "exit 6")
    wait_for(lambda: machine.tasks()[machine.id][1] == "STOPPED")
    machine.lamina("containers", "rm", machine.id)
    assert machine.leftovers() == []


def test_exit_code_is_kept(machine: Machine) -> None:
    machine.lamina("run", "-d", "busybox", machine.id, "sh", "-c", "exit 6")
    wait_for(lambda: machine.tasks()[machine.id][1] == "STOPPED")
    machine.lamina("tasks", "rm", machine.id, code=6)


def test_forced_removal(sleeping: Machine) -> None:
    pid, _ = sleeping.tasks()[sleeping.id]
    sleeping.lamina("tasks", "rm", "-f", sleeping.id, code=128 + signal.SIGKILL)
    assert not alive(pid)
    assert sleeping.tasks() == {}


def test_forced_removal_of_a_foreground_container(machine: Machine) -> None:
    process = machine.start("run", "--rm", "busybox", machine.id, "sleep", "1000")
    wait_for(machine.running)
    machine.lamina("tasks", "rm", "-f", machine.id, code=128 + signal.SIGKILL)
    assert process.wait(WAIT_SECONDS) == 128 + signal.SIGKILL
    assert machine.leftovers() == []


def test_output_goes_to_the_log(machine: Machine) -> None:
    log = machine.root / "log"
    options = ["-d", "--log-uri", f"file://{log}"]
    machine.lamina("run", *options, "busybox", machine.id, "sh", "-c", "echo out; echo err >&2")
    wait_for(lambda: log.read_text() == "out\nerr\n")


def test_detached_start_that_fails_is_one_line(machine: Machine) -> None:
    done = machine.lamina("run", "-d", "busybox", machine.id, "no-such-program", code=7)
    assert len(done.stderr.splitlines()) == 1
    assert "no-such-program" in done.stderr
    assert machine.leftovers() == []


def test_pid_file_of_a_detached_container(machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    options = ["-d", "--pid-file", str(file)]
    machine.lamina("run", *options, "busybox", machine.id, "sleep", "1000")
    assert int(file.read_text()) == machine.tasks()[machine.id][0]


def test_exec(sleeping: Machine) -> None:
    done = sleeping.lamina("tasks", "exec", sleeping.id, "sh", "-c", "id -u; pwd; exit 4", code=4)
    assert done.stdout == "0\n/\n"
    options = ["--user", "app", "--cwd", "/etc", "--env", "A=1", "--exec-id", "mine"]
    command = ["sh", "-c", "id; pwd; echo $A $FROM_IMAGE"]
    done = sleeping.lamina("tasks", "exec", *options, sleeping.id, *command)
    said = "uid=1000(app) gid=1001(app) groups=10(wheel),1001(app)\n/etc\n1 yes\n"
    assert done.stdout == said
    assert sleeping.lamina("tasks", "exec", sleeping.id, "cat", stdin=b"in").stdout == "in"


def test_exec_failures_are_one_line(sleeping: Machine) -> None:
    id = sleeping.id
    for command, code in (([id, "no-such-program"], 7), (["no-such-container", "true"], 3)):
        done = sleeping.lamina("tasks", "exec", *command, code=code)
        assert len(done.stderr.splitlines()) == 1
    sleeping.lamina("tasks", "rm", "-f", id, code=137)
    done = sleeping.lamina("tasks", "exec", id, "true", code=3)
    assert len(done.stderr.splitlines()) == 1


def test_signal_to_an_exec_process(sleeping: Machine) -> None:
    id = sleeping.id
    sleeping.lamina("tasks", "exec", "-d", "--exec-id", "one", id, "sleep", "500")
    assert len(sleeping.lamina("tasks", "ps", id).stdout.splitlines()) == 3
    assert len(json.loads(sleeping.lamina("tasks", "ps", "--json", id).stdout)) == 2
    sleeping.lamina("tasks", "exec", "-d", "--exec-id", "one", id, "sleep", "500", code=4)
    sleeping.lamina("tasks", "kill", "-s", "KILL", "--exec-id", "one", id)
    wait_for(lambda: len(sleeping.lamina("tasks", "ps", id).stdout.splitlines()) == 2)
    sleeping.lamina("tasks", "kill", "-s", "KILL", "--exec-id", "one", id, code=3)
    assert sleeping.tasks()[id][1] == "RUNNING"


def test_kill_sends_the_stop_signal_of_the_image(machine: Machine, tmp_path: Path) -> None:
    machine.run("true")
    machine.add_image(gnu_tar(tmp_path / "busybox"), {"StopSignal": "SIGUSR1"})
    script = "trap 'exit 11' USR1; echo ready; while :; do sleep 0.05; done"
    log = machine.root / "log"
    options = ["-d", "--log-uri", f"file://{log}"]
    machine.lamina("run", *options, "busybox", machine.id, "sh", "-c", script)
    wait_for(lambda: log.read_text() == "ready\n")
    machine.lamina("tasks", "kill", machine.id)
    wait_for(lambda: machine.tasks()[machine.id][1] == "STOPPED")
    machine.lamina("tasks", "rm", machine.id, code=11)


def test_pause_and_resume(sleeping: Machine) -> None:
    id = sleeping.id
    sleeping.lamina("tasks", "pause", id)
    assert sleeping.tasks()[id][1] == "PAUSED"
    sleeping.lamina("tasks", "resume", id)
    assert sleeping.tasks()[id][1] == "RUNNING"
    sleeping.lamina("tasks", "pause", id)
    sleeping.lamina("tasks", "rm", "-f", id, code=137)


@pytest.mark.parametrize("name", ["NOPE", "0", "99999999"])
def test_unknown_signal(sleeping: Machine, name: str) -> None:
    sleeping.lamina("tasks", "kill", "-s", name, sleeping.id, code=2)


def test_no_state_yet(tmp_path: Path) -> None:
    """A runtime makes the container's directory before it writes the state."""
    runtime = OciRuntime(find_runtime(), tmp_path, tmp_path / "log")
    (tmp_path / "starting").mkdir()
    assert runtime.state("starting") is None
    assert runtime.state("unknown") is None

"""`lamina run` in the foreground, with a real runtime: what the container sees and gives back."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.fixtures_containers import WAIT_SECONDS, Machine, alive, make_rootfs, wait_for
from tests.startup import HEAVY, imported

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.overlay]


def test_output_and_nothing_left(machine: Machine) -> None:
    done = machine.run("echo", "one line")
    assert (done.stdout, done.stderr) == ("one line\n", "")
    assert machine.leftovers() == []


def test_a_root_behind_a_link(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(machine.root)
    words = ["run", "--root", str(tmp_path / "link"), "--rm", "busybox", machine.id, "echo", "here"]
    assert machine.lamina(*words).stdout == "here\n"
    assert machine.leftovers() == []


def test_command_of_the_image(machine: Machine) -> None:
    assert machine.run().stdout == "from the image\n"


@pytest.mark.parametrize("code", [1, 42, 127])
def test_exit_code_is_passed_on(machine: Machine, code: int) -> None:
    machine.run("sh", "-c", f"exit {code}", code=code)
    assert machine.leftovers() == []


def test_death_by_signal_is_128_and_more(machine: Machine) -> None:
    # Signals that process 1 of a container sends itself do not count; those of a parent do.
    process = machine.start("run", "--rm", "busybox", machine.id, "sleep", "100")
    wait_for(machine.running)
    machine.lamina("tasks", "kill", "-s", "KILL", machine.id)
    assert process.wait(WAIT_SECONDS) == 128 + signal.SIGKILL
    assert machine.leftovers() == []


def test_standard_input_is_passed_through(machine: Machine) -> None:
    data = b"x" * 300_000
    assert machine.run("wc", "-c", stdin=data).stdout.strip() == "300000"


def test_signals_are_not_ignored_in_the_container(machine: Machine) -> None:
    said = machine.run("grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status").stdout.split()
    # Not the real-time ones: glibc's posix_spawn leaves its own signal 32 ignored.
    assert [int(mask, 16) & 0x7FFF_FFFF for mask in said[1::2]] == [0, 0]


def test_environment(machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# comment\n\nFILE=1\nBOTH=file\n")
    options = ["--env-file", str(file), "--env", "BOTH=flag", "--env", "FROM_IMAGE"]
    said = machine.lamina("run", "--rm", *options, "busybox", machine.id, "env").stdout.split()
    assert {"PATH=/bin", "FILE=1", "BOTH=flag"} <= set(said)
    assert not [entry for entry in said if entry.startswith("FROM_IMAGE")]


@pytest.mark.parametrize(
    ("options", "command", "said"),
    [
        (["--user", "app"], "id", "uid=1000(app) gid=1001(app) groups=10(wheel),1001(app)"),
        (["--user", "app:wheel"], "id -u; id -g", "1000\n10"),
        (["--user", "77:88"], "id -u; id -g", "77\n88"),
        (["--cwd", "/etc"], "pwd", "/etc"),
        (["--hostname", "some-name"], "hostname", "some-name"),
        (["--entrypoint", "echo"], "", "sh -c"),
        (["--read-only"], "touch /x 2>/dev/null || echo refused", "refused"),
        (
            ["--cap-drop", "CAP_CHOWN"],
            "touch /x; /bin/busybox chown 5 /x 2>/dev/null || echo no",
            "no",
        ),
        (["--cap-drop", "ALL"], "grep CapEff /proc/self/status", "CapEff:\t0000000000000000"),
        (["--device", "/dev/fuse"], "ls /dev/fuse", "/dev/fuse"),
        ([], "ls /dev/fuse 2>/dev/null || echo none", "none"),
        ([], "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1"),
        (["--allow-new-privs"], "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t0"),
        (["--privileged"], "mount -t tmpfs none /tmp; grep -c /tmp.tmpfs /proc/mounts", "1"),
        (["--null-io"], "echo lost", ""),
    ],
)
def test_option(machine: Machine, options: list[str], command: str, said: str) -> None:
    command_line = ["sh", "-c", command] if command else ["sh", "-c"]
    done = machine.lamina("run", "--rm", *options, "busybox", machine.id, *command_line)
    assert done.stdout.strip() == said


def test_memory_limit_is_in_force(machine: Machine) -> None:
    eat = "head -c 200000000 /dev/zero | /bin/busybox tail -n 1 | wc -c; exit $?"
    limits = ["--memory-limit", "20MiB"]
    done = machine.lamina("run", "--rm", *limits, "busybox", machine.id, "sh", "-c", eat, code=None)
    assert "200000000" not in done.stdout
    assert machine.leftovers() == []


def test_bind_mount(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    mount = f"type=bind,src={tmp_path}/shared,dst=/host,options=rbind:rw"
    command = ["sh", "-c", "echo data > /host/file"]
    machine.lamina("run", "--rm", "--mount", mount, "busybox", machine.id, *command)
    assert (tmp_path / "shared/file").read_text() == "data\n"
    mount = mount.replace("rw", "ro")
    machine.lamina("run", "--rm", "--mount", mount, "busybox", machine.id, *command, code=1)


def test_host_network_has_the_hosts_name_and_files(machine: Machine) -> None:
    command = ["sh", "-c", "readlink /proc/self/ns/net; cat /etc/hosts; env"]
    said = machine.lamina("run", "--rm", "--net-host", "busybox", machine.id, *command).stdout
    assert str(Path("/proc/self/ns/net").readlink()) in said
    assert Path("/etc/hosts").read_text() in said
    assert "HOSTNAME=" in said


@pytest.mark.idmap
def test_user_namespace(machine: Machine, tmp_path: Path) -> None:
    maps = ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"]
    command = ["sh", "-c", "touch /new; ls -ln /new /bin/busybox; cat /proc/self/uid_map"]
    refused = machine.lamina("run", "--rm", *maps, "busybox", machine.id, *command, code=7)
    assert "chmod o+x" in refused.stderr
    assert machine.leftovers() == []
    session = Path(os.environ["TMPDIR"])
    for directory in (tmp_path, *tmp_path.parents):
        if directory.is_relative_to(session):
            directory.chmod(0o711)
    said = machine.lamina("run", "--rm", *maps, "busybox", machine.id, *command).stdout.split()
    assert said[2:4] == ["0", "0"]
    assert said[-3:] == ["0", "100000", "65536"]
    assert machine.leftovers() == []


def test_directory_as_root(machine: Machine, tmp_path: Path) -> None:
    rootfs = tmp_path / "rootfs"
    rootfs.mkdir()
    make_rootfs(rootfs)
    command = ["run", "--rm", "--rootfs", str(rootfs), machine.id, "/bin/touch", "/tmp/here"]
    machine.lamina(*command)
    assert (rootfs / "tmp/here").exists()
    assert machine.leftovers() == []


def test_own_specification(machine: Machine, tmp_path: Path) -> None:
    machine.lamina("run", "busybox", machine.id, "true")
    spec = json.loads(machine.lamina("containers", "info", "--spec", machine.id).stdout)
    machine.lamina("containers", "rm", machine.id)
    (tmp_path / "rootfs").mkdir()
    make_rootfs(tmp_path / "rootfs")
    spec["root"]["path"] = "rootfs"
    spec["process"]["args"] = ["echo", "mine"]
    (tmp_path / "config.json").write_text(json.dumps(spec))
    done = machine.lamina("run", "--rm", "--spec", str(tmp_path / "config.json"), machine.id)
    assert done.stdout == "mine\n"


def test_pid_file(machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    process = machine.start(
        "run", "--rm", "--pid-file", str(file), "busybox", machine.id, "sleep", "100"
    )
    wait_for(lambda: file.exists() and file.read_text())
    pid = int(file.read_text())
    command = Path(f"/proc/{pid}/cmdline")
    wait_for(lambda: command.read_bytes() == b"sleep\x00100\x00")  # the runtime's own, at first
    process.send_signal(signal.SIGTERM)
    # The first process of a container ignores signals that it has no handler for.
    assert alive(pid)
    machine.lamina("tasks", "kill", "-s", "9", machine.id)
    process.wait(WAIT_SECONDS)


def test_signal_is_forwarded(machine: Machine) -> None:
    script = "trap 'echo got; exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    process = machine.start("run", "--rm", "busybox", machine.id, "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == b"got\n"
    assert process.wait(WAIT_SECONDS) == 7
    assert machine.leftovers() == []


def test_container_stays_without_rm(machine: Machine) -> None:
    machine.lamina("run", "--label", "a=b", "busybox", machine.id, "touch", "/kept")
    assert machine.tasks() == {}
    described = json.loads(machine.lamina("containers", "info", machine.id).stdout)
    assert described["Image"] == "busybox"
    assert described["SnapshotKey"] == machine.id
    assert described["Labels"] == {"a": "b", "io.containerd.image.config.stop-signal": "SIGTERM"}
    listed = machine.lamina("containers", "ls").stdout.splitlines()
    assert listed[0].split() == ["CONTAINER", "IMAGE", "RUNTIME"]
    assert listed[1].split()[:2] == [machine.id, "busybox"]
    machine.lamina("containers", "rm", machine.id)
    assert machine.leftovers() == []


def test_taken_id(machine: Machine) -> None:
    machine.lamina("run", "busybox", machine.id, "true")
    done = machine.run("true", code=4)
    assert len(done.stderr.splitlines()) == 1
    assert f"lamina containers rm {machine.id}" in done.stderr
    machine.lamina("containers", "rm", machine.id)


def test_id_of_a_running_container_is_taken(machine: Machine) -> None:
    process = machine.start("run", "--rm", "busybox", machine.id, "sh", "-c", "echo up; read x")
    assert process.stdout is not None
    process.stdout.readline()
    machine.run("true", code=4)
    process.communicate(b"\n", timeout=WAIT_SECONDS)
    assert machine.leftovers() == []


@pytest.mark.parametrize("id", ["../x", "a/b", "", "a" * 77, "-a", "a..b"])
def test_bad_id(machine: Machine, id: str) -> None:
    done = machine.lamina("run", "--rm", "busybox", "--", id, "true", code=None)
    assert done.returncode == 2
    assert machine.leftovers() == []


def test_unknown_program_is_one_line(machine: Machine) -> None:
    done = machine.run("no-such-program", code=7)
    assert len(done.stderr.splitlines()) == 1
    assert "no-such-program" in done.stderr
    assert machine.leftovers() == []


def test_unknown_user_is_one_line(machine: Machine) -> None:
    done = machine.lamina("run", "--user", "nobody-here", "busybox", machine.id, "true", code=3)
    assert len(done.stderr.splitlines()) == 1
    assert machine.leftovers() == []


def test_missing_runtime_is_one_line(machine: Machine) -> None:
    for runtime in ("/no/such/runtime", "no-such-runtime"):
        options = ["--rm", "--runtime", runtime]
        done = machine.lamina("run", *options, "busybox", machine.id, "true", code=3)
        assert len(done.stderr.splitlines()) == 1
        assert runtime in done.stderr
    assert machine.leftovers() == []


def test_an_image_run_before_needs_no_reading_of_manifests(machine: Machine) -> None:
    """What a second run of an image imports is what every run costs."""
    arguments = ["--root", str(machine.root), "run", "--rm", "busybox", machine.id, "true"]
    assert "lamina.images.manifest" in imported(*arguments)
    modules = imported(*arguments)
    assert "lamina.runtime.start" in modules
    assert modules & HEAVY == set()
    # To read a short name is all that is needed of images.
    images = {name for name in modules if name.startswith("lamina.images")}
    assert images == {"lamina.images", "lamina.images.reference"}


def test_rm_and_detach_exclude_each_other(machine: Machine) -> None:
    machine.lamina("run", "--rm", "-d", "busybox", machine.id, "true", code=2)


def test_terminal_needs_a_terminal(machine: Machine) -> None:
    done = machine.lamina("run", "--rm", "-t", "busybox", machine.id, "true", code=2)
    assert len(done.stderr.splitlines()) == 1
    assert machine.leftovers() == []

"""`lamina images` as it is typed: output, exit codes, errors of one line, interrupts."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faulty_registry import (
    Fault,
    FaultyRegistry,
    Handler,
    basic,
    faulty_registry,
    stall,
)
from tests.fixtures_command import PROGRAM, Command, workers
from tests.fixtures_containers import WAIT_SECONDS, wait_for
from tests.fixtures_registry import LocalRegistry
from tests.images import ARCHITECTURE, OCI_INDEX, ImageFiles, Layer, digest, image, index
from tests.roots import three_layers

pytestmark = [pytest.mark.root, pytest.mark.overlay]

SOON = 15.0
"""Seconds within which what is interrupted ends: a silent registry would be waited for longer."""
OTHER = "arm64" if ARCHITECTURE == "amd64" else "amd64"


@pytest.fixture
def faulty() -> Iterator[FaultyRegistry]:
    with faulty_registry() as running:
        yield running


def serve(faulty: FaultyRegistry, files: ImageFiles, tag: str = "1") -> str:
    for blob in files.blobs:
        faulty.add_blob(blob)
    faulty.add_manifest(tag, files.manifest)
    return f"{faulty.host}/team/app:{tag}"


def chain_id(files: ImageFiles) -> str:
    chain = files.diff_ids[0]
    for diff_id in files.diff_ids[1:]:
        chain = digest(f"{chain} {diff_id}".encode())
    return chain


def silent(handler: Handler) -> None:
    """Take the request and never say a word."""
    handler.registry.stopping.wait()
    handler.close_connection = True


@pytest.mark.registry
def test_pull_list_remove(command: Command, registry: LocalRegistry) -> None:
    files = three_layers()
    registry.push(files.manifest, files.blobs, "team/app", "1")
    ref = f"{registry.host}/team/app:1"
    done = command.run("images", "pull", "--print-chainid", "--label", "a=b", ref)
    first, last = done.stdout.decode().splitlines()
    assert first == f"image chain ID: {chain_id(files)}"
    assert re.fullmatch(rf"{ref}: done in [0-9.]+s, 5.* KiB downloaded \(.* took longest\)", last)
    lines = done.stderr.decode().splitlines()
    for layer in files.layers:
        stages = [line.split()[1] for line in lines if line.startswith(f"layer-{layer.digest}: ")]
        assert stages == ["downloaded", "unpacked", "done"]

    heading, row = command.out("images", "ls").splitlines()
    assert heading.split() == ["REF", "TYPE", "DIGEST", "SIZE", "PLATFORMS", "LABELS"]
    size = sum(map(len, [files.manifest, *files.blobs])) / 1024
    manifest_type = json.loads(files.manifest)["mediaType"]
    assert row.split() == [
        ref, manifest_type, files.digest, f"{size:.1f}", "KiB", f"linux/{ARCHITECTURE}", "a=b",
    ]  # fmt: skip
    assert row.index(manifest_type) == heading.index("TYPE")
    assert command.out("images", "ls", "-q") == f"{ref}\n"
    assert command.out("images", "ls", "-q", "name==other") == ""
    [plain] = command.json("i", "list", "--json", "labels.a==b")
    assert (plain["Name"], plain["Target"]["Digest"]) == (ref, files.digest)
    assert plain["Platforms"] == [f"linux/{ARCHITECTURE}"]

    assert command.out("images", "rm", ref) == f"{ref}\n"
    assert command.out("images", "ls", "-q") == command.out("content", "ls", "-q") == ""
    command.assert_sound()


@pytest.mark.registry
def test_quiet_and_no_unpack(command: Command, registry: LocalRegistry) -> None:
    files = three_layers()
    registry.push(files.manifest, files.blobs, "team/app", "1")
    ref = f"{registry.host}/team/app:1"
    done = command.run("images", "pull", "-q", "--no-unpack", "--sync-fs", ref)
    assert (done.stdout, done.stderr) == (b"", b"")
    assert not (command.root / "io.containerd.snapshotter.v1.overlayfs").exists()
    done = command.run("images", "pull", "-q", "--snapshotter", "native", ref)
    assert (done.stdout, done.stderr) == (b"", b"")
    listed = command.json("snapshots", "--snapshotter", "native", "ls", "--json")
    assert len(listed) == 3


@pytest.mark.registry
def test_platforms(command: Command, registry: LocalRegistry) -> None:
    own, other = image(Layer.of({"a": b"own"})), image(Layer.of({"a": b"x"}), architecture=OTHER)
    for files in (own, other):
        registry.push(files.manifest, files.blobs, "app", files.digest)
    both = index(own, other)
    registry.push(both, [], "app", "1", media_type=OCI_INDEX)
    ref = f"{registry.host}/app:1"
    command.run("images", "pull", "--platform", f"linux/{OTHER}", ref)
    [snapshot] = command.json("snapshots", "ls", "--json")
    assert snapshot["Name"] == chain_id(other)
    [plain] = command.json("images", "ls", "--json")
    assert sorted(plain["Platforms"]) == ["linux/amd64", "linux/arm64"]
    said = command.error("images", "pull", "--platform", "plan9/mips", ref, code=3)
    assert '"plan9/mips": not found' in said
    assert "linux/" in command.error("images", "pull", "--platform", "a/b/c/d", ref, code=2)


def test_export_and_import(command: Command, faulty: FaultyRegistry, tmp_path: Path) -> None:
    ref = serve(faulty, three_layers())
    command.run("images", "pull", "-q", "--plain-http", ref)
    archive = tmp_path / "image.tar"
    assert command.out("images", "export", archive, ref) == ""
    assert command.run("images", "export", "-", ref).stdout == archive.read_bytes()
    command.run("images", "rm", ref)
    with archive.open("rb") as file:
        done = command.run("images", "import", "--label", "from=tar", "-", stdin=file)
    assert done.stdout.decode() == f"{ref}\n"
    assert command.json("images", "ls", "--json")[0]["Labels"] == {"from": "tar"}
    command.assert_sound(3)
    command.run("images", "rm", ref)
    assert command.out("images", "import", "--no-unpack", archive) == f"{ref}\n"
    command.assert_sound(0)


def test_export_leaves_devices_and_links_alone(
    command: Command, faulty: FaultyRegistry, tmp_path: Path
) -> None:
    ref = serve(faulty, three_layers())
    command.run("images", "pull", "-q", "--plain-http", "--no-unpack", ref)
    device, link, file = tmp_path / "null", tmp_path / "link", tmp_path / "file"
    os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    link.symlink_to(file)
    for out in (device, link):
        command.run("images", "export", out, ref)
    assert stat.S_ISCHR(device.lstat().st_mode)
    assert link.is_symlink()
    assert file.read_bytes() == command.run("images", "export", "-", ref).stdout
    assert "never/pulled" in command.error("images", "export", file, "never/pulled", code=3)
    assert command.error("images", "export", tmp_path, ref, code=1).startswith("lamina: Is a dir")
    assert list(tmp_path.glob("*.partial")) == []


def test_remove_tells_of_every_image_that_is_not_there(command: Command) -> None:
    done = command.run("images", "rm", "one", "two", code=3)
    assert [line.split('"')[1] for line in done.stderr.decode().splitlines()] == [
        "docker.io/library/one:latest",
        "docker.io/library/two:latest",
    ]


def test_removing_an_image_drops_what_a_failed_pull_kept(
    command: Command, faulty: FaultyRegistry
) -> None:
    files = three_layers()
    ref = serve(faulty, files)
    command.run("images", "pull", "-q", "--plain-http", ref)
    faulty.add_manifest("1", b'{"schemaVersion": 2, "mediaType": "application/json"}')
    command.error("images", "pull", "-q", "--plain-http", ref, code=13)
    command.run("images", "rm", ref)
    assert command.out("content", "ls", "-q") == ""
    command.assert_sound()


def test_run_of_an_image_never_pulled_tells_how_to_get_it(command: Command) -> None:
    said = command.error("run", "--rm", "debian:12", "name", code=3)
    assert said == ('lamina: image "debian:12": not found; get it: lamina images pull debian:12')


def test_mount_and_unmount(command: Command, faulty: FaultyRegistry, tmp_path: Path) -> None:
    files = three_layers()
    ref = serve(faulty, files)
    command.run("images", "pull", "-q", "--plain-http", ref)
    target = tmp_path / "target"
    target.mkdir()
    mounted = f"{chain_id(files)}\n{target}\n"
    assert command.out("images", "mount", ref, target) == mounted
    assert (target / "etc/a").read_bytes() == b"new a"
    with pytest.raises(OSError, match="Read-only"):
        (target / "new").touch()
    assert "lamina images unmount --rm" in command.error(
        "images", "mount", "--rw", ref, target, code=4
    )
    assert command.out("images", "unmount", "--rm", target) == f"{target}\n"
    assert list(target.iterdir()) == []
    assert command.out("images", "mount", "--rw", ref, target) == mounted
    (target / "new").write_bytes(b"kept")
    command.run("images", "unmount", target)
    command.run("images", "rm", ref)
    assert len(command.json("snapshots", "ls", "--json")) == 4
    command.run("images", "unmount", "--rm", target)
    assert command.json("snapshots", "ls", "--json") == []
    command.run("snapshots", "cleanup")
    command.assert_sound()


def test_unmount_takes_off_only_what_mount_has_put_there(command: Command, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", target], check=True)
    try:
        assert "not found" in command.error("images", "unmount", target, code=3)
        assert os.path.ismount(target)
    finally:
        subprocess.run(["umount", target], check=True)


def test_unmount_leaves_what_the_image_has_covered(
    command: Command, faulty: FaultyRegistry, tmp_path: Path
) -> None:
    ref = serve(faulty, three_layers())
    command.run("images", "pull", "-q", "--plain-http", ref)
    target = tmp_path / "target"
    disk, inside = target / "disk", target / "etc"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", target], check=True)
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", disk], check=True)
    try:
        command.run("images", "mount", ref, target)
        subprocess.run(["mount", "-t", "tmpfs", "none", inside], check=True)
        command.run("images", "unmount", "--rm", target)
        assert os.path.ismount(target)
        assert os.path.ismount(disk)
        assert not inside.exists()
    finally:
        subprocess.run(["umount", disk, target], check=True)


def test_no_image_is_mounted_on_the_root_directory(command: Command) -> None:
    command.run("snapshots", "prepare", "/")
    for verb in (["mount", "debian:12"], ["unmount"]):
        assert "name another directory" in command.error("images", *verb, "/", code=2)
    command.run("snapshots", "rm", "/")


def test_bars_on_a_terminal(command: Command, faulty: FaultyRegistry) -> None:
    ref = serve(faulty, three_layers())
    ours, theirs = pty.openpty()
    try:
        process = command.start("images", "pull", "--plain-http", ref, stderr=theirs)
        os.close(theirs)
        shown = b""
        while data := _read(ours):
            shown += data
        assert process.wait(WAIT_SECONDS) == 0
    finally:
        os.close(ours)
    assert shown.count(b"layer ") >= 3
    assert b"done" in shown
    assert b"\x1b[?25h" in shown  # the cursor is shown again


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # EIO: nobody has the other end open any more
        return b""


@pytest.mark.parametrize(
    ("name", "number", "fault"),
    [
        ("overlayfs", signal.SIGINT, silent),
        ("overlayfs", signal.SIGTERM, stall(50_000)),
        ("native", signal.SIGTERM, silent),
        ("native", signal.SIGINT, stall(50_000)),
    ],
)
def test_interrupted(
    command: Command, faulty: FaultyRegistry, name: str, number: signal.Signals, fault: Fault
) -> None:
    """More layers wait for a silent registry than are downloaded at a time."""
    files = image(*(Layer.of({f"file{i}": os.urandom(100_000)}) for i in range(6)))
    ref = serve(faulty, files)
    for layer in files.layers:
        faulty.fault(layer.digest, fault)
    process = command.start("images", "pull", "-q", "--plain-http", "--snapshotter", name, ref)
    wait_for(lambda: len(faulty.seen) >= 5)
    time.sleep(0.2)
    said, seconds = command.stop(process, number)
    assert process.returncode == 128 + number
    assert said == b""
    assert seconds < SOON
    assert workers() == []
    command.assert_sound()
    faulty.faults.clear()
    command.run("images", "pull", "-q", "--plain-http", ref)
    command.assert_sound(6)


def test_interrupted_while_unpacking(command: Command, faulty: FaultyRegistry) -> None:
    files = image(Layer.of({f"d/{i}": b"x" * 100 for i in range(30_000)}))
    ref = serve(faulty, files)
    process = command.start("images", "pull", "-q", "--plain-http", ref)
    wait_for(workers)
    time.sleep(0.3)
    said, seconds = command.stop(process, signal.SIGINT)
    assert (process.returncode, said) == (130, b"")
    assert seconds < SOON
    assert workers() == []
    command.run("snapshots", "cleanup")
    command.assert_sound()


def test_closed_pipes(command: Command, faulty: FaultyRegistry) -> None:
    ref = serve(faulty, three_layers())
    script = '"$0" --root "$1" images pull --plain-http "$2" 2>&1 | true; echo ${PIPESTATUS[0]}'
    for verb in (script, script.replace("pull --plain-http", "ls").replace(' "$2" 2>&1', "")):
        done = subprocess.run(
            ["bash", "-c", verb, PROGRAM, command.root, ref], capture_output=True, check=True
        )
        assert (done.stdout, done.stderr) == (b"141\n", b"")


def test_a_full_disk_for_the_output(command: Command) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command.argv("images", "ls"), stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (6, b"lamina: No space left on device\n")


def test_global_options_anywhere(tmp_path: Path) -> None:
    root = str(tmp_path / "elsewhere")
    for words in (
        ["--root", root, "images", "ls"],
        ["images", "--root", root, "ls"],
        ["images", "ls", "--root", root],
    ):
        done = subprocess.run([PROGRAM, *words], capture_output=True, check=True)
        assert done.stdout.startswith(b"REF ")
        assert (tmp_path / "elsewhere/metadata.sqlite").exists()


def test_roots(tmp_path: Path) -> None:
    def lamina(root: str, *, umask: int = 0o022) -> subprocess.CompletedProcess[bytes]:
        words = [PROGRAM, "images", "ls", "--root", root]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, check=False, umask=umask)

    assert lamina("relative").returncode == 0
    assert lamina("").returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["relative"]
    done = lamina("no/parent")
    assert (done.returncode, done.stderr.count(b"\n")) == (3, 1)
    assert b"make it first" in done.stderr
    (tmp_path / "file").touch()
    for name in ("file", "file/below"):
        done = lamina(name)
        assert (done.returncode, done.stderr.count(b"\n")) == (7, 1)
        assert b"no directory" in done.stderr
    done = lamina("/../")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    lamina("strict", umask=0o077)
    assert stat.S_IMODE((tmp_path / "strict").stat().st_mode) == 0o711


@pytest.mark.userns
def test_without_home_user_and_locale(command: Command, faulty: FaultyRegistry) -> None:
    ref = serve(faulty, three_layers())
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    nobody = ["unshare", "--user", "--map-user=987654", "--map-group=987654"]
    for words in (
        ["images", "pull", "-q", "--no-unpack", "--label", "a=ü", "--plain-http", ref],
        ["images", "ls"],
        ["images", "ls", "--json"],
    ):
        done = subprocess.run(
            [*nobody, *command.argv(*words)], env=environment, capture_output=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, b"")


def test_streams_that_are_closed(command: Command, faulty: FaultyRegistry) -> None:
    ref = serve(faulty, three_layers())

    def lamina(closing: str, *words: object) -> subprocess.CompletedProcess[bytes]:
        script = f'exec "$@" {closing}'
        argv = ["sh", "-c", script, "sh", *command.argv(*words)]
        return subprocess.run(argv, capture_output=True, timeout=60, check=False)

    assert lamina("<&- >&- 2>&-", "images", "pull", "--plain-http", ref).returncode == 0
    for closing, words in (
        ("<&-", ["images", "import", "-"]),
        ("<&-", ["content", "ingest", "key"]),
        (">&-", ["images", "export", "-", ref]),
        (">&-", ["content", "get", three_layers().layers[0].digest]),
    ):
        done = lamina(closing, *words)
        assert (done.returncode, done.stderr.count(b"\n")) == (2, 1), done.stderr
        assert b"it is closed" in done.stderr
    command.assert_sound(3)


def test_names_that_are_no_text(command: Command) -> None:
    for verb in (["images", "rm"], ["leases", "create", "--id"], ["containers", "info"]):
        assert "read name" in command.error(*verb, "\udcff", code=2)


def test_a_password_without_a_terminal(command: Command) -> None:
    words = ["images", "pull", "--user", "me", "localhost:1/x"]
    done = command.run(*words, code=2, stdin=subprocess.DEVNULL, start_new_session=True)
    assert b"no terminal to ask for the password" in done.stderr
    assert b"Warning" not in done.stderr


def test_debugging_shows_no_password(command: Command, faulty: FaultyRegistry) -> None:
    ref = serve(faulty, three_layers())
    faulty.challenge, faulty.accepted = 'Basic realm="test"', {basic("me:secret")}
    words = ["images", "pull", "--plain-http", "-u", "me:secret", ref]
    said = command.run("--debug", *words).stderr.decode()
    assert f"GET http://{faulty.host}/v2/team/app/manifests/1" in said
    assert "secret" not in said
    assert basic("me:secret").removeprefix("Basic ") not in said


def test_a_read_only_root(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = Command(disk / "root")
    subprocess.run(["mount", "-t", "tmpfs", "none", disk], check=True)
    try:
        command.run("images", "ls")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        for words in (["images", "ls"], ["snapshots", "ls"], ["run", "--rm", "x", "y"], ["fsck"]):
            assert "Read-only file system" in command.error(*words, code=5)
    finally:
        subprocess.run(["umount", disk], check=True)

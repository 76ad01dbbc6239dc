"""`lamina fsck`: each kind of damage, done for real: found, explained, left alone, mended."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lamina.meta.containers import Container
from tests.faulty_registry import FaultyRegistry, faulty_registry
from tests.fixtures_command import Command
from tests.images import ImageFiles, digest
from tests.isolation import mount_points
from tests.roots import three_layers

pytestmark = [pytest.mark.root, pytest.mark.overlay]


@pytest.fixture
def faulty() -> Iterator[FaultyRegistry]:
    with faulty_registry() as running:
        yield running


class Damaged:
    """A root with one image, to be damaged."""

    def __init__(self, command: Command, faulty: FaultyRegistry) -> None:
        self.command = command
        self.files: ImageFiles = three_layers()
        for blob in self.files.blobs:
            faulty.add_blob(blob)
        faulty.add_manifest("1", self.files.manifest)
        self.ref = f"{faulty.host}/team/app:1"
        self.pull()

    def pull(self, name: str = "overlayfs") -> None:
        words = ["images", "pull", "-q", "--plain-http", "--snapshotter", name, self.ref]
        self.command.run(*words)

    def fetch(self) -> None:
        self.command.run("images", "pull", "-q", "--plain-http", "--no-unpack", self.ref)

    def blob(self, data: bytes) -> Path:
        return (
            self.command.root / "io.containerd.content.v1.content/blobs/sha256" / digest(data)[7:]
        )

    def layer(self, number: int) -> Path:
        return self.blob(self.files.layers[number].blob)

    def storage(self, number: int, name: str = "overlayfs") -> Path:
        """Return the directory of a layer's snapshot."""
        return self.command.root / f"io.containerd.snapshotter.v1.{name}/snapshots/{number}"

    def execute(self, statement: str, database: str = "metadata.sqlite") -> None:
        with closing(sqlite3.connect(self.command.root / database)) as connection:
            connection.execute(statement)
            connection.commit()

    def expect(self, *lines: str) -> None:
        """Check twice that fsck prints these lines and no others: it changes nothing."""
        for _ in range(2):
            done = self.command.run("fsck", code=13)
            assert sorted(done.stdout.decode().splitlines()) == sorted(lines)
            noun = "problem" if len(lines) == 1 else "problems"
            assert f"check: {len(lines)} {noun} in" in done.stderr.decode()

    def repair(self, *options: str) -> list[str]:
        """Repair everything, after which nothing is wrong."""
        said = self.command.out("fsck", "--repair", *options).splitlines()
        assert self.command.out("fsck", "--deep") == ""
        return said

    def files_of(self, name: str = "overlayfs") -> dict[str, str]:
        """Return what the image holds, as a container sees it."""
        target = self.command.root.parent / "look"
        target.mkdir(exist_ok=True)
        options = ["--snapshotter", name]
        self.command.run("images", "mount", *options, self.ref, target)
        found = {
            str(path.relative_to(target)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in target.rglob("*")
            if path.is_file()
        }
        self.command.run("images", "unmount", "--rm", *options, target)
        return found


@pytest.fixture
def damaged(command: Command, faulty: FaultyRegistry) -> Damaged:
    made = Damaged(command, faulty)
    assert command.out("fsck") == command.out("fsck", "--deep") == ""
    return made


def test_a_layers_blob_is_gone_and_one_is_cut_off(damaged: Damaged) -> None:
    first, second = (f"sha256:{damaged.layer(i).name}" for i in (0, 1))
    damaged.layer(0).unlink()
    damaged.layer(1).write_bytes(b"short")
    size = len(damaged.files.layers[1].blob)
    then = f"get it again: lamina images pull --no-unpack {damaged.ref}"
    damaged.expect(
        f"{first}: its file is gone; --repair forgets it; {then}",
        f"{second}: its file has 5 bytes instead of {size}; --repair forgets it; {then}",
    )
    plain = json.loads(damaged.command.run("fsck", "--json", code=13).stdout)
    assert sorted(p["Subject"] for p in plain) == sorted([first, second])
    assert {p["Repair"] for p in plain} == {"forgets it"}
    assert damaged.layer(1).read_bytes() == b"short"
    assert sorted(damaged.repair())[0].endswith(f"; repaired (forgets it); {then}")
    assert b"incomplete (2/4)" in damaged.command.run("images", "check", code=7).stdout
    damaged.fetch()
    damaged.command.run("images", "check")


def test_altered_blobs_are_found_by_their_hash(damaged: Damaged) -> None:
    layer, config = damaged.layer(2), damaged.blob(damaged.files.config)
    for path in (layer, config):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    assert damaged.command.out("fsck") == ""
    done = damaged.command.run("fsck", "--deep", code=13).stdout.decode()
    assert f"sha256:{layer.name}: its file has other content: sha256:" in done
    done = damaged.command.run("fsck", "--deep", "--repair", code=13).stdout.decode()
    # A record that keeps others stays, so that they are not collected before the next pull.
    then = f"get it again: lamina images pull --no-unpack {damaged.ref}"
    assert f"repaired (removes the file); {then}\n" in done
    assert done.endswith(f"sha256:{config.name}: its file is gone; {then}\n")
    assert not layer.exists()
    damaged.fetch()
    assert damaged.command.out("fsck", "--deep") == ""
    damaged.command.run("images", "check")


def test_the_manifest_is_gone(damaged: Damaged) -> None:
    damaged.blob(damaged.files.manifest).unlink()
    then = f"get it again: lamina images pull --no-unpack {damaged.ref}"
    lines = (
        f"{damaged.files.digest}: its file is gone; {then}",
        f"{damaged.ref}: {damaged.files.digest} is not there;"
        f" get it again: lamina images pull {damaged.ref}",
    )
    damaged.expect(*lines)
    done = damaged.command.run("fsck", "--repair", code=13)
    assert sorted(done.stdout.decode().splitlines()) == sorted(lines)
    assert len(damaged.command.json("content", "ls", "--json")) == 4
    damaged.pull()
    damaged.command.assert_sound(3)


def test_a_record_is_gone(damaged: Damaged) -> None:
    """What an image needs is recorded again, with what it keeps."""
    for data in (damaged.files.manifest, damaged.files.layers[0].blob):
        damaged.execute(f"DELETE FROM content WHERE digest = '{digest(data)}'")
    what = f"no record names this blob; --repair records it again for {damaged.ref}"
    damaged.expect(
        f"{damaged.layer(0)}: {what}",
        f"{damaged.blob(damaged.files.manifest)}: {what}",
        f"{damaged.ref}: {damaged.files.digest} is not there;"
        f" get it again: lamina images pull {damaged.ref}",
    )
    damaged.repair()
    damaged.command.run("snapshots", "cleanup")
    damaged.command.run("images", "check")
    damaged.command.assert_sound(3)


def test_stray_blob_download_storage_and_mount_point(damaged: Damaged) -> None:
    stray = damaged.blob(b"stray")
    stray.write_bytes(b"stray")
    content = damaged.command.root / "io.containerd.content.v1.content"
    ingest = content / "ingest" / ("0" * 64)
    ingest.mkdir()
    (ingest / "data").write_bytes(b"half")
    mounts = damaged.command.root / "tmpmounts/0123456789abcdef"
    (mounts / "lamina-mount-1").mkdir(parents=True)
    storage = damaged.storage(4711)
    (storage / "fs/etc").mkdir(parents=True)
    damaged.expect(
        f"{stray}: no record names this blob; --repair removes it",
        f"{ingest}: a download that nobody goes on with; --repair removes it",
        f"{mounts}: the process that mounted it has died; --repair unmounts and removes it",
        "overlayfs: 4711: there is storage of this number but no snapshot; --repair removes it",
    )
    [*outcomes] = damaged.command.json("fsck", "--repair", "--json")
    assert [(o["Repaired"], o["Failure"]) for o in outcomes] == [(True, "")] * 4
    assert damaged.repair() == []
    assert not any(path.exists() for path in (stray, ingest, mounts, storage))
    damaged.command.assert_sound(3)


def test_a_download_that_is_gone_on_with_is_no_problem(
    command: Command, faulty: FaultyRegistry
) -> None:
    with command.open() as store:
        writer = store.images.content.open_writer("some-key")
        assert command.out("fsck") == ""
        writer.close()
        assert "a download that nobody" in command.run("fsck", code=13).stdout.decode()
        writer = store.images.content.open_writer("some-key")
        assert command.out("fsck", "--repair") == ""
        writer.abort()


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("overlayfs", (1,)),
        ("overlayfs", (2, 3)),
        ("overlayfs", (1, 2, 3)),
        ("native", (2,)),
        ("native", (1, 2)),
    ],
)
def test_layers_are_unpacked_again(damaged: Damaged, name: str, gone: tuple[int, ...]) -> None:
    damaged.pull(name)
    before = damaged.files_of(name)
    command, listed = damaged.command, ["snapshots", "--snapshotter", name, "ls"]
    rows = command.out(*listed)
    command.run("snapshots", "--snapshotter", name, "prepare", "mine", rows.split()[-3:][0])
    for number in gone:
        shutil.rmtree(damaged.storage(number, name))
    what = f"its storage is gone; --repair unpacks it again from the content of {damaged.ref}"
    lines = command.run("fsck", code=13).stdout.decode().splitlines()
    assert len(lines) == len(gone)
    assert all(line.startswith(f"{name}: sha256:") and line.endswith(what) for line in lines)
    assert not any(damaged.storage(number, name).exists() for number in gone)
    assert len(damaged.repair()) == len(gone)
    assert damaged.files_of(name) == before
    command.run("snapshots", "--snapshotter", name, "rm", "mine")
    assert command.out(*listed) == rows


def test_a_layer_without_fs(damaged: Damaged) -> None:
    fs = damaged.storage(2) / "fs"
    fs.rename(fs.with_name("moved"))
    said = f"overlayfs: 2: {fs} is gone, or no directory; put it back; if that cannot be, remove"
    damaged.expect(f"{said} {fs.parent} and check again")
    damaged.command.run("fsck", "--repair", code=13)
    fs.with_name("moved").rename(fs)
    assert damaged.repair() == []


def test_storage_that_is_no_directory(damaged: Damaged, tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    damaged.storage(77).symlink_to(tmp_path)
    damaged.storage(78).touch()
    damaged.command.run("fsck", "--repair")
    damaged.command.run("snapshots", "cleanup")
    assert not {"77", "78", "rm-77", "rm-78"} & {
        p.name for p in damaged.storage(1).parent.iterdir()
    }
    assert (tmp_path / "kept").exists()


def test_layers_whose_content_is_not_here(damaged: Damaged) -> None:
    """One with children stays, marked lost, until a pull restores it; one without is forgotten."""
    command = damaged.command
    before = damaged.files_of()
    command.run("content", "rm", damaged.files.layers[0].digest)
    layers = {layer["Name"]: layer for layer in command.json("snapshots", "ls", "--json")}
    [base] = [name for name, layer in layers.items() if "Parent" not in layer]
    [top] = layers.keys() - {layer.get("Parent") for layer in layers.values()}
    for number, name in _keys(damaged):
        if name in {base, top}:
            shutil.rmtree(damaged.storage(number))
    then = f"get it again: lamina images pull {damaged.ref}"
    damaged.expect(
        f"overlayfs: {base}: its storage is gone; --repair marks it as lost; {then}",
        f"overlayfs: {top}: its storage is gone; --repair removes its record; {then}",
    )
    done = command.run("fsck", "--repair", code=13).stdout.decode().splitlines()
    assert done[-1] == f"overlayfs: {base}: its content is lost; {then}"
    assert command.run("fsck", "--repair", code=13).stdout.decode().splitlines() == [done[-1]]
    damaged.pull()
    assert command.out("fsck") == ""
    assert damaged.files_of() == before


def test_a_layer_of_no_image(command: Command) -> None:
    """Nothing is deleted on which something stands."""
    for name, parent in (("a", ""), ("b", "a")):
        command.run("snapshots", "prepare", f"{name}-active", *([parent] if parent else []))
        command.run("snapshots", "commit", name, f"{name}-active")
    command.run("snapshots", "prepare", "alone")
    storage = command.root / "io.containerd.snapshotter.v1.overlayfs/snapshots"
    for number in (1, 3):
        shutil.rmtree(storage / str(number))
    lines = [
        "overlayfs: a: its storage is gone; remove it and what stands on it; no image has it",
        "overlayfs: alone: its storage is gone; --repair removes its record",
    ]
    assert command.run("fsck", code=13).stdout.decode().splitlines() == lines
    done = command.run("fsck", "--repair", code=13).stdout.decode().splitlines()
    assert done == [
        "overlayfs: alone: its storage is gone; repaired (removes its record)", lines[0],
    ]  # fmt: skip
    command.run("snapshots", "rm", "b")
    assert command.out("fsck", "--repair").startswith("overlayfs: a: its storage is gone; repaired")
    assert command.out("fsck") == ""


def test_what_a_containerd_has_is_left_to_it(command: Command) -> None:
    command.run("snapshots", "prepare", "default/7/x")
    shutil.rmtree(command.root / "io.containerd.snapshotter.v1.overlayfs/snapshots/1")
    line = (
        "overlayfs: default/7/x: its storage is gone;"
        " a containerd has it: remove there its containers and image, then pull that again\n"
    )
    assert command.run("fsck", "--repair", code=13).stdout.decode() == line
    command.run("snapshots", "rm", "default/7/x")
    assert command.out("fsck") == ""


def _keys(damaged: Damaged) -> list[tuple[int, str]]:
    path = damaged.command.root / "io.containerd.snapshotter.v1.overlayfs/snapshots.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT id, key FROM snapshots").fetchall()


def test_a_mount_of_a_dead_process(damaged: Damaged) -> None:
    program = (
        "import lamina, sys, time\n"
        "from lamina.mount import temp_mount\n"
        "with lamina.open(sys.argv[1]) as store:\n"
        "    mounts = store.snapshotter().prepare('held')\n"
        "    with temp_mount(mounts, dir=store.images.mounts) as path:\n"
        "        print(path, flush=True)\n"
        "        time.sleep(60)\n"
    )
    argv = [sys.executable, "-c", program, str(damaged.command.root)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        path = Path(process.stdout.readline().strip())
        assert damaged.command.out("fsck", "--repair") == ""
        assert str(path) in mount_points()
        process.send_signal(signal.SIGKILL)
    damaged.expect(
        f"{path.parent}: the process that mounted it has died; --repair unmounts and removes it"
    )
    damaged.repair()
    assert str(path) not in mount_points()


def test_mounts_of_storage_that_is_gone(damaged: Damaged) -> None:
    command = damaged.command
    inside, outside = command.root / "containers/x/rootfs", command.root.parent / "outside"
    for target in (inside, outside):
        target.mkdir(parents=True)
        key = target.parent.name
        command.run("snapshots", "prepare", key, _keys(damaged)[-1][1])
        for line in command.out("snapshots", "mounts", target, key).splitlines():
            subprocess.run(line.split(), check=True)
        command.run("snapshots", "rm", key)
    command.run("snapshots", "cleanup")
    try:
        done = command.run("fsck", code=13).stdout.decode()
        assert f"{inside}: it is mounted for container x, which does not run; --repair" in done
        assert (
            f"{outside}: it is mounted from storage of overlayfs that is gone; umount {outside}\n"
        ) in done
        done = command.run("fsck", "--repair", code=13).stdout.decode()
        assert str(inside) not in mount_points()
        assert str(outside) in mount_points()
        assert done.endswith(f"umount {outside}\n")
    finally:
        subprocess.run(["umount", outside], check=True)
    assert not inside.parent.exists()
    assert command.out("fsck") == ""


@pytest.mark.loop
def test_a_loop_device_of_a_file_that_is_gone(damaged: Damaged) -> None:
    """It is in use, so it is told of and not taken away."""
    file = damaged.command.root / "image"
    file.write_bytes(bytes(1 << 20))
    argv = ["losetup", "--find", "--show", str(file)]
    device = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    try:
        assert damaged.command.out("fsck") == ""
        file.unlink()
        line = (
            f"{device}: it shows a file of this root that is gone;"
            f" end what uses it, then losetup -d {device}"
        )
        damaged.expect(line)
        assert damaged.command.run("fsck", "--repair", code=13).stdout.decode() == f"{line}\n"
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
    assert damaged.command.out("fsck") == ""


def test_containers(damaged: Damaged, container_id: str) -> None:
    command = damaged.command
    first, second, third = (f"{container_id}-{i}" for i in range(3))
    command.run("snapshots", "prepare", first, _keys(damaged)[-1][1])
    with command.open() as store:
        for id in (first, second):
            store.containers.create(
                Container(id=id, image=damaged.ref, snapshotter="overlayfs", snapshot_key=id)
            )
    bundles = command.root / "containers"
    (bundles / second).mkdir(parents=True)
    (bundles / third / "rootfs").mkdir(parents=True)
    damaged.expect(
        f"container {first}: its bundle is gone; --repair removes its record and leaves its"
        f" snapshot {first}; discard that if it is not wanted: lamina snapshots --snapshotter"
        f" overlayfs rm {first}",
        f"container {second}: its snapshot {second} is gone; lamina containers rm {second}",
        f"{bundles / third}: no container has it; --repair removes it",
    )
    done = command.run("fsck", "--repair", code=13).stdout.decode().splitlines()
    assert done[-1].startswith(f"container {second}: its snapshot")
    assert command.json("snapshots", "info", first)["Kind"] == "Active"
    assert sorted(path.name for path in bundles.iterdir()) == [second]
    with command.open() as store:
        store.containers.delete(second)
    assert len(damaged.repair()) == 1


def test_a_bundle_that_someone_is_at_is_no_problem(damaged: Damaged) -> None:
    bundle = damaged.command.root / "containers/busy"
    bundle.mkdir(parents=True)
    with subprocess.Popen(["flock", bundle, "sleep", "60"]) as process:
        while subprocess.run(["flock", "-n", bundle, "true"], check=False).returncode == 0:
            pass
        assert damaged.command.out("fsck", "--repair") == ""
        process.kill()


@pytest.mark.parametrize("value", ["{broken", "[]", ""])
def test_rows_that_cannot_be_read(damaged: Damaged, value: str) -> None:
    command = damaged.command
    damaged.execute(f"UPDATE images SET labels = '{value}'")
    damaged.execute(f"UPDATE content SET labels = '{value}'")
    snapshots = "io.containerd.snapshotter.v1.overlayfs/snapshots.sqlite"
    damaged.execute(f"UPDATE snapshots SET labels = '{value}' WHERE id = 2", snapshots)
    damaged.expect(
        f"{damaged.ref}: the column labels of its row in images cannot be read;"
        " --repair empties it; then check again"
    )
    said = damaged.repair()
    assert len(said) == 7
    assert sum("takes them from its document" in line for line in said) == 2
    # What they keep is told from the documents: a collection takes nothing.
    command.run("snapshots", "cleanup")
    assert len(command.json("content", "ls", "--json")) == 5
    command.assert_sound(3)
    command.run("images", "check")
    command.run("images", "rm", damaged.ref)
    command.assert_sound(0)


def test_a_record_that_names_no_blob(damaged: Damaged) -> None:
    outside = damaged.command.root.parent / "outside"
    outside.write_bytes(b"wanted")
    digest = f"sha256:../../../../{outside.name}"
    damaged.execute(f"INSERT INTO content VALUES ('{digest}', 5, '{{}}', 1, 1, NULL)")
    damaged.expect(f"{digest}: its file has 6 bytes instead of 5; --repair forgets it")
    damaged.repair()
    assert outside.exists()


def test_an_index_that_is_out_of_step_and_rows_that_dangle(damaged: Damaged) -> None:
    name = "content_unsynced"
    with closing(sqlite3.connect(damaged.command.root / "metadata.sqlite")) as connection:
        find = f"SELECT * FROM sqlite_master WHERE name = '{name}'"
        schema = connection.execute(find).fetchone()
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(f"DELETE FROM sqlite_master WHERE name = '{name}'")
        connection.commit()
    damaged.execute("UPDATE content SET unsynced = 'x'")
    damaged.execute("INSERT INTO lease_resources VALUES ('nobody', 'content', 'x')")
    with closing(sqlite3.connect(damaged.command.root / "metadata.sqlite")) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("INSERT INTO sqlite_master VALUES (?,?,?,?,?)", schema)
        connection.commit()
    done = damaged.command.run("fsck", code=13).stdout.decode()
    assert "--repair makes the indexes anew" in done
    assert (
        "metadata.sqlite: 1 rows of table lease_resources refer to a row that is gone;"
        " --repair removes them\n"
    ) in done
    damaged.repair()


def test_a_database_that_is_none(damaged: Damaged) -> None:
    path = damaged.command.root / "io.containerd.snapshotter.v1.native/snapshots.sqlite"
    damaged.command.run("snapshots", "--snapshotter", "native", "ls")
    for file in path.parent.glob("snapshots.sqlite*"):
        file.unlink()
    path.write_bytes(b"no database" * 1000)
    said = damaged.command.run("fsck", "--repair", code=13).stdout.decode()
    assert said.startswith("native: it cannot be opened: ")
    assert "restore the file" in said
    assert path.read_bytes().startswith(b"no database")


def test_what_a_killed_probe_left(damaged: Damaged) -> None:
    left = damaged.command.root / ".lamina-probe-1-deadbeef/probe-1-1/at"
    left.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", left], check=True)
    time.sleep(1.1)
    probe = left.parents[1]
    damaged.expect(
        f"{probe}: the process that tried snapshotters there has died; --repair removes it"
    )
    damaged.repair()
    assert not probe.exists()


def test_repair_killed_at_any_time_can_be_repeated(damaged: Damaged) -> None:
    before = damaged.files_of()
    for milliseconds in (150, 250, 350, 450, 600):
        for path in _directories(damaged)[:1]:  # there are none if all repairs were cut short
            shutil.rmtree(path)
        process = damaged.command.start("fsck", "--repair")
        try:
            process.wait(milliseconds / 1000)
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
    damaged.repair()
    assert damaged.files_of() == before


def _directories(damaged: Damaged) -> list[Path]:
    return [p for p in damaged.storage(0).parent.iterdir() if p.name.isdecimal()]

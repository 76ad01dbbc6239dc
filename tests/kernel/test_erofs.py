"""The erofs snapshotter: images of layers, where they are mounted, what a kill leaves."""

from __future__ import annotations

import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from lamina.core.driver import Snapshot
from lamina.core.mount import Mount
from lamina.core.snapshot import Kind
from lamina.errors import (
    Aborted,
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    LaminaError,
    ResourceExhausted,
)
from lamina.formats.erofs.reader import Image
from lamina.layer.changes import pairs
from lamina.linux.inode_flags import FS_IMMUTABLE_FL, get_flags
from lamina.linux.mountinfo import read_mountinfo
from lamina.mount import temp_mount, unmount
from lamina.snapshotters.engine import Engine
from lamina.snapshotters.erofs.driver import IMAGE, ErofsDriver
from lamina.snapshotters.erofs.plugin import NEEDS, PLUGIN, ErofsConfig
from lamina.snapshotters.lower_mounts import is_mounted
from lamina.snapshotters.stargz.driver import StargzDriver
from tests.erofs import ACL, CAPABILITY, Bytes, fsck
from tests.fixtures_containers import Machine
from tests.isolation import mount_points
from tests.killed import killed
from tests.trees import describe

pytestmark = [pytest.mark.root, pytest.mark.overlay, pytest.mark.erofs]

REPOSITORY = Path(__file__).parents[2]
SNAPSHOTTER = ("--snapshotter", "erofs")
SEED = 20261127
KILLS = 6
MIB = 1 << 20
Pairs = Generator[tuple[bytes, os.stat_result | None, os.stat_result | None]]


@pytest.fixture
def driver(tmp_path: Path) -> ErofsDriver:
    return ErofsDriver(tmp_path / "root")


@pytest.fixture
def engine(driver: ErofsDriver, tmp_path: Path) -> Iterator[Engine]:
    with Engine("erofs", driver, tmp_path / "root", sync_remove=True) as engine:
        yield engine


def opened(root: Path) -> Engine:
    return Engine("erofs", PLUGIN.load(ErofsConfig(), root), root, sync_remove=True)


def fill(root: Path) -> None:
    """Make something of every kind."""
    (root / "file").write_bytes(b"content")
    os.utime(root / "file", ns=(1, 1_234_567_890_123_456_789))
    os.chown(root / "file", 70_000, 80_000)
    os.setxattr(root / "file", "user.name", b"value")
    os.setxattr(root / "file", "security.capability", CAPABILITY)
    os.link(root / "file", root / "linked")
    (root / "empty").touch(0o4755)
    (root / "directory").mkdir(0o1777)
    os.setxattr(root / "directory", "system.posix_acl_default", ACL)
    (root / "directory/link").symlink_to("../" * 500)
    os.mkfifo(root / "fifo", 0o600)
    os.mknod(root / "socket", stat.S_IFSOCK | 0o600)
    os.mknod(root / "device", stat.S_IFBLK | 0o600, os.makedev(300, 70_000))
    with (root / "sparse").open("wb") as sparse:
        sparse.seek(3 * MIB)
        sparse.write(b"in the middle")
        sparse.truncate(9 * MIB + 1)
    root.chmod(0o711)


def id_of(engine: Engine, key: str) -> int:
    return engine._store.record(key).id


def layer_points(root: Path) -> list[str]:
    return [info.point for info in read_mountinfo() if info.point.startswith(f"{root}/")]


def test_layer_is_an_image_of_all_that_was_changed(
    engine: Engine, driver: ErofsDriver, tmp_path: Path
) -> None:
    with temp_mount(engine.prepare("key"), dir=tmp_path) as root:
        fill(root)
        before = describe(root)
    engine.commit("layer", "key")
    image = driver.image(id_of(engine, "layer"))
    fsck(image)
    assert image.stat().st_blocks * 512 == engine.usage("layer").size < 2 * MIB
    with temp_mount(engine.view("view", "layer"), dir=tmp_path) as root:
        assert describe(root) == before
    [mount] = engine.mounts("view")
    assert mount.type == "bind"
    assert mount.read_only


def test_whiteouts_hide_what_is_below(engine: Engine, driver: ErofsDriver, tmp_path: Path) -> None:
    with temp_mount(engine.prepare("one"), dir=tmp_path) as root:
        (root / "gone").touch()
        (root / "opaque").mkdir()
        (root / "opaque/old").touch()
    engine.commit("first", "one")
    with temp_mount(engine.prepare("two", "first"), dir=tmp_path) as root:
        (root / "gone").unlink()
        (root / "opaque/old").unlink()
        (root / "opaque").rmdir()
        (root / "opaque").mkdir()
        (root / "opaque/new").touch()
        above = describe(root)
    engine.commit("second", "two")
    tree = Image(Bytes(driver.image(id_of(engine, "second")).read_bytes())).tree()
    assert tree.children[b"gone"].mode == stat.S_IFCHR
    assert dict(tree.children[b"opaque"].xattrs) == {b"trusted.overlay.opaque": b"y"}
    assert tree.xattrs == {}
    with temp_mount(engine.view("view", "second"), dir=tmp_path) as root:
        assert describe(root) == above


def test_commit_that_comes_to_nothing_loses_nothing(
    engine: Engine, driver: ErofsDriver, tmp_path: Path
) -> None:
    engine.prepare("other")
    engine.commit("taken", "other")
    with temp_mount(engine.prepare("key"), dir=tmp_path) as root:
        (root / "a").write_text("a")
    driver.seal(Snapshot(id_of(engine, "key"), Kind.ACTIVE))
    with pytest.raises(AlreadyExists):
        engine.commit("taken", "key")
    with temp_mount(engine.mounts("key"), dir=tmp_path) as root:
        assert (root / "a").read_text() == "a"
        (root / "b").write_text("b")
    engine.commit("layer", "key")
    with temp_mount(engine.view("view", "layer"), dir=tmp_path) as root:
        assert sorted(path.name for path in root.iterdir()) == ["a", "b"]


def test_what_the_image_has_is_freed_once_it_is_on_disk(
    engine: Engine, driver: ErofsDriver, tmp_path: Path
) -> None:
    with temp_mount(engine.prepare("key"), dir=tmp_path) as root:
        (root / "a").write_text("a")
    engine.commit("layer", "key")
    id = id_of(engine, "layer")
    assert (driver.fs(id) / "a").exists()
    engine.sync()
    assert list(driver.fs(id).iterdir()) == []
    assert {path.name for path in driver.of(id).iterdir()} == {".erofslayer", "fs", "layer.erofs"}
    engine.prepare("above", "layer")
    engine.commit("second", "above")
    engine.sync()
    driver.settle([id, 999])
    assert (driver.fs(id) / "a").read_text() == "a"


def test_commit_that_fills_the_disk_gives_back_what_it_took(tmp_path: Path) -> None:
    with (
        temp_mount([Mount("tmpfs", "tmpfs", options=("size=8m",))], dir=tmp_path) as disk,
        opened(disk / "root") as engine,
    ):
        with temp_mount(engine.prepare("key"), dir=tmp_path) as root:
            (root / "big").write_bytes(random.Random(SEED).randbytes(5 * MIB))
        directory = disk / f"root/snapshots/{id_of(engine, 'key')}"
        with pytest.raises(ResourceExhausted):
            engine.commit("layer", "key")
        assert {path.name for path in directory.iterdir()}.isdisjoint({"layer.erofs.new", IMAGE})
        os.truncate(directory / "fs/big", 2 * MIB)
        engine.commit("layer", "key")
        assert engine.fsck() == []


def change_to_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("elsewhere")


def change_to_another(path: Path) -> None:
    path.with_name("another").touch()
    path.with_name("another").rename(path)


def change_to_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "change", [Path.unlink, change_to_link, change_to_another, change_to_directory]
)
def test_commit_of_what_is_changed_meanwhile_is_aborted(
    engine: Engine,
    driver: ErofsDriver,
    change: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine.prepare("key")
    upper = driver.fs(id_of(engine, "key"))
    (upper / "file").write_text("x")

    def changed(lower: int | None, fd: int) -> Pairs:
        for found in pairs(lower, fd):
            change(upper / "file")
            yield found

    with monkeypatch.context() as patch:
        patch.setattr("lamina.snapshotters.erofs.image.pairs", changed)
        with pytest.raises(Aborted, match="file"):
            engine.commit("layer", "key")
    engine.commit("layer", "key")
    assert engine.fsck() == []


def test_paths_of_layers_have_their_limit(engine: Engine, driver: ErofsDriver) -> None:
    name = "d" * 15
    engine.prepare("key")
    fd = os.open(driver.fs(id_of(engine, "key")), os.O_RDONLY)
    for _ in range(4096 // (len(name) + 1)):
        os.mkdir(name, dir_fd=fd)
        above, fd = fd, os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(above)
    os.mkdir("more", dir_fd=fd)
    with pytest.raises(InvalidArgument, match=f"{name}.*at most 4095 bytes"):
        engine.commit("layer", "key")
    os.rmdir("more", dir_fd=fd)
    os.close(fd)
    engine.commit("layer", "key")
    fsck(driver.image(id_of(engine, "layer")))


@pytest.mark.parametrize("file_backed", [True, False])
def test_layers_are_mounted_when_they_are_needed(tmp_path: Path, file_backed: bool) -> None:
    root = tmp_path / "root"
    driver = ErofsDriver(root, file_backed=file_backed)
    with Engine("erofs", driver, root, sync_remove=True) as engine:
        parent = ""
        for name in ("one", "two", "three"):
            with temp_mount(engine.prepare(f"key-{name}", parent), dir=tmp_path) as place:
                (place / name).touch()
            engine.commit(name, f"key-{name}")
            parent = name
        ids = [id_of(engine, name) for name in ("one", "two", "three")]
        assert [is_mounted(driver.fs(id)) for id in ids] == [True, True, False]
        engine.prepare("container", "three")
        sources = {info.source for info in read_mountinfo() if info.point.startswith(f"{root}/")}
        assert all(source.startswith("/dev/loop") != file_backed for source in sources)
        assert len(sources) == 3
        for point in layer_points(root):  # as after a restart of the machine
            unmount(point)
        with temp_mount(engine.mounts("container"), dir=tmp_path) as place:
            assert sorted(path.name for path in place.iterdir()) == ["one", "three", "two"]
            assert len(layer_points(root)) == 3
        for key in ("container", "three", "two", "one"):
            engine.remove(key)
        assert engine.fsck() == []
    assert layer_points(root) == []
    assert list(driver.path.iterdir()) == []


def test_layer_is_removed_while_an_overlay_on_it_is_mounted(engine: Engine, tmp_path: Path) -> None:
    with temp_mount(engine.prepare("key"), dir=tmp_path) as root:
        (root / "a").write_text("a")
    engine.commit("layer", "key")
    with temp_mount(engine.prepare("container", "layer"), dir=tmp_path) as root:
        engine.remove("container")
        engine.remove("layer")
        assert not engine.pending()
        assert (root / "a").read_text() == "a"


def test_many_at_once_mount_a_layer_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with opened(root) as engine:
        engine.prepare("key")
        engine.commit("layer", "key")
    engines = [opened(root) for _ in range(4)]
    start = threading.Barrier(len(engines))
    failures: list[BaseException] = []

    def prepare(number: int) -> None:
        try:
            start.wait()
            engines[number].prepare(f"container-{number}", "layer")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=prepare, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(layer_points(root)) == 1
    for engine in engines:
        engine.close()


def test_lost_image_is_told(engine: Engine, driver: ErofsDriver) -> None:
    engine.prepare("key")
    engine.commit("layer", "key")
    engine.view("not looked at")
    engine.sync()
    assert engine.fsck() == []
    driver.image(id_of(engine, "layer")).unlink()
    with pytest.raises(DataLoss, match=r"layer\.erofs"):
        engine.prepare("container", "layer")
    [problem] = engine.fsck()
    assert problem.what.endswith("layer.erofs is gone")
    engine.remove("layer")


@pytest.mark.parametrize("lost", ["fs", ""])
def test_lost_directory_is_told(engine: Engine, driver: ErofsDriver, lost: str) -> None:
    engine.prepare("key")
    engine.commit("layer", "key")
    shutil.rmtree(driver.of(id_of(engine, "layer")) / lost)
    with pytest.raises(DataLoss, match=r"/fs.*it is gone"):
        engine.prepare("container", "layer")
    assert engine.fsck() != []
    engine.remove("layer")
    assert engine.fsck() == []


@pytest.mark.parametrize("file_backed", [True, False])
def test_damaged_image_is_told(tmp_path: Path, file_backed: bool) -> None:
    root = tmp_path / "root"
    driver = ErofsDriver(root, file_backed=file_backed)
    with Engine("erofs", driver, root, sync_remove=True) as engine:
        with temp_mount(engine.prepare("key"), dir=tmp_path) as place:
            (place / "file").write_bytes(bytes(range(256)) * 100)
        engine.commit("layer", "key")
        image = driver.image(id_of(engine, "layer"))
        good = image.read_bytes()
        for bad in (b"", good[:1000], good[:4096], bytes(len(good))):
            image.write_bytes(bad)
            with pytest.raises(DataLoss, match=r"layer\.erofs.*pull them again"):
                engine.prepare("container", "layer")
        image.unlink()
        image.mkdir()
        with pytest.raises(DataLoss, match=r"layer\.erofs.*no file"):
            engine.prepare("container", "layer")
        image.rmdir()
        image.write_bytes(good)
        engine.prepare("container", "layer")


def test_check_looks_into_images(engine: Engine, driver: ErofsDriver, tmp_path: Path) -> None:
    with temp_mount(engine.prepare("key"), dir=tmp_path) as place:
        fill(place)
    engine.commit("layer", "key")
    image = driver.image(id_of(engine, "layer"))
    good = image.read_bytes()
    image.write_bytes(bytes(len(good)))
    assert engine.fsck(deep=True) == []  # not settled: it could be in the making
    engine.sync()
    for bad in (b"", good[:4000], good[:-4096], good[:1030] + b"x" + good[1031:]):
        image.write_bytes(bad)
        [problem] = engine.fsck()
        assert f"{image} is damaged" in problem.what
        assert "lamina images rm" in problem.fix
        assert engine.fsck(deep=True) == [problem]
    root = Image(Bytes(good)).root
    image.write_bytes(good)
    assert engine.fsck(deep=True) == []
    names = good.index(b"...")
    assert names > root.at
    image.write_bytes(good[:names] + b"/" + good[names + 1 :])
    assert engine.fsck() == []
    [problem] = engine.fsck(deep=True)
    assert f"{image} is damaged" in problem.what


def test_check_looks_into_metadata_of_lazy_layers(tmp_path: Path) -> None:
    driver = StargzDriver(tmp_path)
    driver.create(Snapshot(1, Kind.ACTIVE))
    assert list(driver.faults(lambda _: True)) == []
    driver.image(1).write_bytes(bytes(8192))
    assert list(driver.faults(lambda _: True)) == []  # it is being written
    os.utime(driver.image(1), (1, 1))
    assert list(driver.faults(lambda _: False)) == []
    [problem] = driver.faults(lambda _: True)
    assert problem.subject == "1"
    assert "magic number" in problem.what


def test_immutable_images(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with Engine("erofs", ErofsDriver(root, immutable=True), root, sync_remove=True) as engine:
        engine.prepare("key")
        engine.commit("layer", "key")
        image = root / f"snapshots/{id_of(engine, 'layer')}/layer.erofs"
        fd = os.open(image, os.O_RDONLY)
        assert get_flags(fd) & FS_IMMUTABLE_FL
        os.close(fd)
        engine.remove("layer")
        assert not image.exists()
        assert engine.fsck() == []


def test_immutable_or_sealed_images_where_there_is_no_such_thing(tmp_path: Path) -> None:
    subprocess.run(("mount", "-t", "ramfs", "ramfs", tmp_path), check=True)
    with pytest.raises(FailedPrecondition, match="leave set_immutable false"):
        PLUGIN.load(ErofsConfig(set_immutable=True), tmp_path / "root")
    with pytest.raises(FailedPrecondition, match=r"no fs-verity.*leave enable_fsverity false"):
        PLUGIN.load(ErofsConfig(enable_fsverity=True), tmp_path / "root")
    unmount(tmp_path)
    PLUGIN.load(ErofsConfig(set_immutable=True), tmp_path / "root").close()
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["snapshots"]


def test_what_no_image_can_hold_is_named_and_kept(tmp_path: Path) -> None:
    """An image takes 64 KiB of attributes for each file; tmpfs takes more."""
    subprocess.run(("mount", "-t", "tmpfs", "tmpfs", tmp_path), check=True)
    with opened(tmp_path / "root") as engine:
        [mount] = engine.prepare("key")
        file = Path(mount.source) / "file"
        file.write_text("x")
        for number in range(5):
            os.setxattr(file, f"trusted.{number}", bytes(60_000))
        with pytest.raises(InvalidArgument, match="file"):
            engine.commit("layer", "key")
        assert file.read_text() == "x"
    unmount(tmp_path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (ErofsConfig(dmverity_mode="on"), "dmverity_mode: dm-verity is not there; "),
        (ErofsConfig(dmverity_mode="maybe"), "dmverity_mode: 'maybe' is none of auto, on, off"),
        (ErofsConfig(default_size="64MiB"), "default_size: writable layers"),
        (ErofsConfig(default_size="much"), "default_size: "),
        (ErofsConfig(layer_content_caches=("/x",)), "layer_content_caches: "),
        (ErofsConfig(ovl_mount_options=("upperdir=/x",)), "ovl_mount_options: 'upperdir=/x'"),
    ],
)
def test_configuration_that_cannot_be_followed(config: ErofsConfig, said: str) -> None:
    [problem] = config.problems()
    assert problem.startswith(said)


def test_usual_configuration_is_no_problem() -> None:
    assert ErofsConfig(default_size="0", dmverity_mode="off", set_immutable=True).problems() == []


def test_needs_are_met(tmp_path: Path) -> None:
    assert [need.probe(tmp_path) for need in NEEDS] == [None, None]
    assert list(tmp_path.iterdir()) == []
    assert [point for point in mount_points() if str(tmp_path) in point] == []


@pytest.mark.runtime
def test_containers(machine: Machine) -> None:
    script = "echo x > /file && cat /file && mount | grep ' / '"
    done = machine.lamina("run", "--rm", *SNAPSHOTTER, "busybox", machine.id, "sh", "-c", script)
    assert done.stdout.startswith("x\noverlay on / type overlay (rw,")
    machine.lamina("run", "-d", *SNAPSHOTTER, "busybox", machine.id, "sleep", "1000")
    machine.lamina("tasks", "rm", "-f", machine.id, code=137)
    machine.lamina("containers", "rm", machine.id)
    assert "Active" not in machine.lamina("snapshots", *SNAPSHOTTER, "ls").stdout
    assert machine.lamina("fsck").stdout == ""


# Kills


def work(directory: str, seed: str) -> None:
    """Make, commit and remove snapshots until killed; no mount of them, which would stay."""
    root = Path(directory)
    chance = random.Random(seed)
    with opened(root) as engine:
        print("ready", flush=True)
        for number in range(100_000):
            try:
                turn(engine, root, f"{seed}-{number}", chance)
            except LaminaError:
                continue


def turn(engine: Engine, root: Path, name: str, chance: random.Random) -> None:
    infos = list(engine.walk())
    committed = ["", *(info.name for info in infos if info.kind == Kind.COMMITTED)]
    match chance.randrange(5):
        case 0 | 1 | 2:
            engine.prepare(f"key-{name}", chance.choice(committed))
            upper = root / f"snapshots/{id_of(engine, f'key-{name}')}/fs"
            for file in range(20):
                (upper / f"file-{file}").write_text(name)
            engine.commit(name, f"key-{name}")
            if chance.random() < 0.3:
                engine.sync()
        case 3:
            engine.view(f"view-{name}", chance.choice(committed))
        case 4:
            for info in chance.sample(infos, len(infos) // 2):
                engine.remove(info.name)


def test_killed_at_random_moments(tmp_path: Path) -> None:
    root, chance = tmp_path / "sn", random.Random(SEED)
    code = f"import sys; from {__name__} import work; work(sys.argv[1], sys.argv[2])"
    for number in range(KILLS):
        argv = [sys.executable, "-c", code, str(root), f"{number}"]
        with subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(chance.uniform(0, 0.4))
            process.send_signal(signal.SIGKILL)
        with opened(root) as engine:
            assert engine.fsck() == []
            for info in engine.walk(["kind==committed"]):
                with temp_mount(engine.view("look", info.name), dir=tmp_path) as top:
                    assert (top / "file-19").read_text() == info.name
                engine.remove("look")
            for info in list(engine.walk(["kind!=committed"])):
                engine.remove(info.name)
            engine.cleanup()
            assert engine.fsck() == []
            assert len(list(engine._driver.ids())) == len(list(engine.walk()))


def test_killed_anywhere_in_a_commit(tmp_path: Path) -> None:
    """At each return of what makes the image or frees what it was made from."""

    def counts(module: str, function: str) -> bool:
        return module.startswith(("lamina.snapshotters.erofs", "lamina.meta.snapshots"))

    def commit() -> None:
        with opened(root) as engine:
            engine.commit("top", "key")
            engine.sync()

    root = tmp_path / "sn"
    with opened(root) as engine:
        with temp_mount(engine.prepare("key"), dir=tmp_path) as top:
            (top / "a").write_text("a")
            (top / "b").write_text("b")
        engine.commit("base", "key")
    number, was_killed = 0, True
    while was_killed:
        number += 1 + number // 8
        with opened(root) as engine:
            mounts = engine.prepare("key", "base")
        with temp_mount(mounts, dir=tmp_path) as top:
            (top / "b").write_text("new")
            (top / "c").write_text("c")
        was_killed = killed(commit, number, counts)
        with opened(root) as engine:
            if "key" in {info.name for info in engine.walk()}:
                engine.commit("top", "key")
            with temp_mount(engine.view("look", "top"), dir=tmp_path) as top:
                seen = {path.name: path.read_text() for path in top.iterdir()}
            assert seen == {"a": "a", "b": "new", "c": "c"}
            engine.sync()
            assert engine.fsck() == []
            engine.remove("look")
            engine.remove("top")
            engine.cleanup()
            assert {path.name for path in (root / "snapshots").iterdir()} == {"1"}
    assert number > 10

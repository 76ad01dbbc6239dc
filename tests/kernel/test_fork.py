"""Forks of snapshots that change, whose process is killed, or for which the disk is too small."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamina.core.labels import OVERLAY_VOLATILE
from lamina.core.snapshot import Kind
from lamina.errors import DataLoss, FailedPrecondition, ResourceExhausted
from lamina.mount import temp_mount
from lamina.snapshotters import live_copy
from lamina.snapshotters.blockfile.plugin import PLUGIN as BLOCKFILE
from lamina.snapshotters.blockfile.plugin import BlockfileConfig
from lamina.snapshotters.engine import Engine
from lamina.snapshotters.live_copy import DEEPEST, copy_live_tree
from lamina.snapshotters.overlayfs.driver import OverlayDriver
from lamina.snapshotters.tree import remove_tree
from tests.kernel.test_snapshot_storage import described, populate
from tests.snapshot_loop import open_engine, top

pytestmark = pytest.mark.root

REPOSITORY = Path(__file__).parents[2]
SEED = 20261126
KILLS = 8
BOTH = pytest.mark.parametrize("name", ["overlayfs", "native"])
SMALL = BlockfileConfig(scratch_size="64MiB")


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    return source, target


# Copies of what changes


def test_live_copy_keeps_everything(trees: tuple[Path, Path]) -> None:
    source, target = trees
    populate(source)
    expected = described(source)
    copy_live_tree(source, target)
    assert described(target) == expected
    assert (target / "sparse").stat().st_blocks == (source / "sparse").stat().st_blocks < 1000


@pytest.mark.reflink
def test_live_copy_shares_blocks(reflink_dir: Path) -> None:
    source, target = reflink_dir / "source", reflink_dir / "target"
    source.mkdir()
    target.mkdir()
    populate(source)
    (source / "large").write_bytes(os.urandom(32 << 20))
    os.sync()
    free = os.statvfs(reflink_dir).f_bfree
    expected = described(source)
    copy_live_tree(source, target)
    os.sync()
    assert described(target) == expected
    assert (free - os.statvfs(reflink_dir).f_bfree) * 4096 < 4 << 20


@contextmanager
def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], object]) -> Iterator[None]:
    """Have something done before each entry is copied, with the number of those before it."""
    count = iter(range(10_000))
    with monkeypatch.context() as patch:
        patch.setattr(live_copy, "check_cancelled", lambda: act(next(count)))
        yield


def once(act: Callable[[], object], at: int = 0) -> Callable[[int], None]:
    def step(number: int) -> None:
        if number == at:
            act()

    return step


def test_live_copy_of_what_vanishes(
    trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = trees
    for name in ("gone", "kept"):
        (source / name).write_text(name)
    (source / "dir").mkdir()

    def vanish() -> None:
        (source / "gone").unlink()
        (source / "dir").rmdir()

    with meanwhile(monkeypatch, once(vanish)):
        copy_live_tree(source, target)
    assert {path.name for path in target.iterdir()} - {"dir"} == {"kept"}


def test_live_copy_of_what_appears_by_a_rename(
    trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that gets another name while its directory is read is not lost."""
    source, target = trees
    for number in range(5):
        (source / f"{number}").write_text("x")

    def rename() -> None:
        for number in range(5):
            (source / f"{number}").rename(source / f"new-{number}")

    with meanwhile(monkeypatch, once(rename)):
        copy_live_tree(source, target)
    assert {path.name for path in target.iterdir()} == {f"new-{number}" for number in range(5)}


@pytest.mark.parametrize("kind", ["fifo", "device", "symlink", "directory"])
def test_live_copy_of_a_file_that_becomes_something_else(
    trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Nothing is opened that must not be: a fifo would wait, a device do who knows what."""
    source, target = trees
    path = source / "file"
    path.write_text("x")

    def replace() -> None:
        path.unlink()
        match kind:
            case "fifo":
                os.mkfifo(path)
            case "device":
                os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(99, 99))
            case "symlink":
                path.symlink_to("/etc/passwd")
            case "directory":
                path.mkdir()
                (path / "below").write_text("y")

    with meanwhile(monkeypatch, once(replace)):
        copy_live_tree(source, target)
    assert stat.S_IFMT((target / "file").lstat().st_mode) == stat.S_IFMT(path.lstat().st_mode)
    if kind == "directory":
        assert (target / "file/below").read_text() == "y"


def test_live_copy_of_a_directory_that_is_moved_away(
    trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The copy goes on where it was, and never outside the tree."""
    source, target = trees
    (source / "a/b").mkdir(parents=True)
    (source / "a/b/deep").write_text("x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/secret").write_text("s")

    def move(number: int) -> None:
        if (source / "a/b").exists() and (target / "a/b").exists():
            (source / "a/b").rename(tmp_path / "elsewhere/b")

    (source / "a/z").mkdir()
    (source / "a/z/more").write_text("x")
    with meanwhile(monkeypatch, move):
        copy_live_tree(source, target)
    assert not list(target.rglob("secret"))
    assert (target / "a/b/deep").read_text() == "x"
    assert (target / "a/z/more").read_text() == "x"


def test_live_copy_tells_inodes_of_one_number_apart(
    trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hard link is no link to what had its inode number before."""
    source, target = trees
    for directory, names in {"a": ("one", "two"), "z": ("late",)}.items():
        (source / directory).mkdir()
        for name in names:
            (source / directory / name).touch()
    (source / "a/two").unlink()
    os.link(source / "a/one", source / "a/two")

    def exchange(number: int) -> None:
        if (target / "a/two").exists() and (source / "a/one").exists():
            (source / "a/one").unlink()
            (source / "a/two").unlink()
            for number in range(100):
                (source / f"z/new-{number}").write_text(f"{number}")
                os.link(source / f"z/new-{number}", source / f"z/link-{number}")

    order = {"a": 1, "z": 0, "one": 2, "two": 3}  # directories are taken from the end
    listed = live_copy.LiveCopy._listed
    with monkeypatch.context() as patch:
        patch.setattr(
            live_copy.LiveCopy,
            "_listed",
            lambda copy: sorted(listed(copy), key=lambda name: order.get(name, 9)),
        )
        with meanwhile(monkeypatch, exchange):
            copy_live_tree(source, target)
    for number in range(100):
        for name in ("new", "link"):
            assert (target / f"z/{name}-{number}").read_text() == f"{number}"


def test_live_copy_of_a_tree_that_is_too_deep(trees: tuple[Path, Path]) -> None:
    source, target = trees
    deep = source
    for _ in range(DEEPEST):
        deep = deep / "d"
    deep.mkdir(parents=True)
    try:
        copy_live_tree(source, target)
        assert sum(1 for _ in os.walk(target)) == DEEPEST + 1
        remove_tree(target)
        target.mkdir()
        (deep / "d").mkdir()
        with pytest.raises(FailedPrecondition, match="400 directories deep"):
            copy_live_tree(source, target)
    finally:
        remove_tree(source)
        remove_tree(target)


@contextmanager
def repeated(act: Callable[[int], object]) -> Iterator[None]:
    """Do something again and again in a thread, with the number of times before."""
    stop = threading.Event()

    def run() -> None:
        number = 0
        while not stop.is_set():
            act(number)
            number += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def churn(root: Path, chance: random.Random) -> None:
    directory = root / f"stable-{chance.randrange(50)}"
    path = directory / f"churn-{chance.randrange(20)}"
    (directory / "new").write_text("n")
    (directory / "new").rename(path)
    os.link(path, directory / "link")
    (directory / "link").unlink()
    if chance.random() < 0.5:
        path.unlink()
    (root / "dir/a/b").mkdir(parents=True)
    (root / "dir/a").rename(root / "moved")
    (root / "moved/b").rmdir()
    (root / "moved").rmdir()
    (root / "dir").rmdir()


@BOTH
@pytest.mark.overlay
def test_fork_while_everything_changes(name: str, tmp_path: Path) -> None:
    """What stays is whole in each fork, whatever happens around it."""
    chance = random.Random(SEED)
    with (
        open_engine(name, tmp_path / "sn") as engine,
        temp_mount(engine.prepare("source"), dir=tmp_path) as root,
    ):
        for number in range(50):
            (root / f"stable-{number}").mkdir()
            (root / f"stable-{number}/file").write_text(f"{number}")
        with repeated(lambda number: churn(root, chance)):
            forks = [top(engine.fork("source", f"fork-{number}")) for number in range(8)]
        for fork in forks:
            found = [(fork / f"stable-{number}/file").read_text() for number in range(50)]
            assert found == [f"{number}" for number in range(50)]
        assert engine.fsck() == []


@pytest.mark.overlay
def test_fork_of_metacopies(tmp_path: Path) -> None:
    """A file whose attributes alone were copied up has its content from below, in the fork too."""
    driver = OverlayDriver(tmp_path / "sn", mount_options=("metacopy=on", "redirect_dir=on"))
    with Engine("overlayfs", driver, tmp_path / "sn") as engine:
        fs = top(engine.prepare("key"))
        (fs / "file").write_text("content")
        (fs / "dir").mkdir()
        (fs / "dir/below").write_text("below")
        engine.commit("base", "key")
        with temp_mount(engine.prepare("source", "base"), dir=tmp_path) as root:
            (root / "file").chmod(0o600)
            (root / "dir").rename(root / "renamed")
            mounts = engine.fork("source", "fork")
        upper = top(mounts) / "file"
        assert os.getxattr(upper, "trusted.overlay.metacopy") is not None
        assert upper.read_bytes() == bytes(len("content"))
        with temp_mount(mounts, dir=tmp_path) as root:
            assert (root / "file").read_text() == "content"
            assert (root / "file").stat().st_mode & 0o777 == 0o600
            assert (root / "renamed/below").read_text() == "below"
            assert not (root / "dir").exists()


@pytest.mark.overlay
def test_fork_is_another_filesystem(tmp_path: Path) -> None:
    """The UUID that newer kernels give an overlay is not its fork's."""
    with open_engine("overlayfs", tmp_path / "sn") as engine:
        engine.prepare("key")
        engine.commit("base", "key")
        with (
            temp_mount(engine.prepare("source", "base"), dir=tmp_path) as source,
            temp_mount(engine.fork("source", "fork"), dir=tmp_path) as fork,
        ):
            upper = top(engine.mounts("source"))
            if "trusted.overlay.uuid" not in os.listxattr(upper):
                pytest.skip("this kernel gives overlays no UUID")
            assert os.statvfs(source).f_fsid != os.statvfs(fork).f_fsid


@pytest.mark.overlay
def test_fork_of_a_volatile_snapshot_after_a_restart_is_refused(tmp_path: Path) -> None:
    labels = {OVERLAY_VOLATILE: "true"}
    root = tmp_path / "sn"
    with Engine("overlayfs", OverlayDriver(root, boot="one"), root, boot="one") as engine:
        engine.prepare("key")
        engine.commit("base", "key")
        engine.prepare("source", "base", labels=labels)
        engine.fork("source", "fork")
        assert engine.stat("fork").labels.items() >= labels.items()
        assert engine.mounts("fork")[0].options[-1] == "volatile"
        engine.sync()
    with Engine("overlayfs", OverlayDriver(root, boot="two"), root, boot="two") as engine:
        with pytest.raises(DataLoss, match="volatile"):
            engine.fork("source", "late")
        assert engine.fsck() == []


# Kills, and full disks


def fork_in_another_process(name: str, root: Path) -> subprocess.Popen[str]:
    code = (
        "import sys; from pathlib import Path; from tests.snapshot_loop import open_engine\n"
        "with open_engine(sys.argv[1], Path(sys.argv[2])) as engine:\n"
        "    print('ready', flush=True)\n"
        "    for number in range(1000):\n"
        "        engine.fork('source', f'fork-{number}')\n"
        "        engine.remove(f'fork-{number}')\n"
    )
    argv = [sys.executable, "-c", code, name, str(root)]
    return subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


@BOTH
def test_kill_in_the_middle_of_a_fork(name: str, tmp_path: Path) -> None:
    """Nothing half made is left, and the source is forked, committed and removed as before."""
    root, chance = tmp_path / "sn", random.Random(SEED)
    with open_engine(name, root) as engine:
        source = top(engine.prepare("source"))
        for number in range(300):
            (source / f"file-{number}").write_text("x")
        half_made = 0
        for number in range(KILLS):
            process = fork_in_another_process(name, root)
            assert process.stdout is not None
            with process, process.stdout:
                assert process.stdout.readline() == "ready\n"
                time.sleep(chance.uniform(0, 0.1))
                process.send_signal(signal.SIGKILL)
            with_storage = len(list(engine._driver.ids()))
            half_made += with_storage > 1
            fork = top(engine.fork("source", f"next-{number}"))
            assert len(list(fork.iterdir())) == 300
            engine.remove(f"next-{number}")
            for info in engine.walk(["name~=^fork-"]):
                assert len(list(top(engine.mounts(info.name)).iterdir())) == 300
                engine.remove(info.name)
            engine.cleanup()
            assert engine.fsck() == []
            assert list(engine._driver.ids()) == [1]
        assert half_made, "no kill came at the right moment"
        engine.commit("committed", "source")
        engine.remove("committed")


@BOTH
@pytest.mark.parametrize("what", ["space", "inodes"])
@pytest.mark.overlay
def test_fork_on_a_full_disk(name: str, what: str, tmp_path: Path) -> None:
    limit = "size=6m" if what == "space" else "nr_inodes=60"
    with tmpfs(tmp_path / "disk", limit) as disk, open_engine(name, disk / "sn") as engine:
        source = top(engine.prepare("source"))
        if what == "space":
            (source / "large").write_bytes(os.urandom(4 << 20))
        for number in range(30):
            (source / f"{number}").touch()
        before = described(source)
        with pytest.raises(ResourceExhausted, match='fork snapshot "source" as "fork"'):
            engine.fork("source", "fork")
        assert_only_the_source(engine)
        assert described(source) == before


@pytest.mark.loop
def test_fork_of_an_image_file_on_a_full_disk(tmp_path: Path) -> None:
    with (
        tmpfs(tmp_path / "disk", "size=48m") as disk,
        Engine("blockfile", BLOCKFILE.load(SMALL, disk / "sn"), disk / "sn") as engine,
        temp_mount(engine.prepare("source"), dir=tmp_path) as root,
    ):
        (root / "large").write_bytes(os.urandom(24 << 20))
        with pytest.raises(ResourceExhausted):
            engine.fork("source", "fork")
        assert_only_the_source(engine)


def assert_only_the_source(engine: Engine) -> None:
    assert [info.name for info in engine.walk()] == ["source"]
    assert engine.fsck() == []
    assert list(engine._driver.ids()) == [1]
    engine.commit("committed", "source")
    assert engine.stat("committed").kind == Kind.COMMITTED


@contextmanager
def tmpfs(directory: Path, *options: str) -> Iterator[Path]:
    directory.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "-o", ",".join(options), "none", directory), check=True)
    try:
        yield directory
    finally:
        subprocess.run(("umount", directory), check=True)


# Image files


def write_next(root: Path, number: int) -> None:
    """Write and sync one of many numbered files."""
    with (root / f"{number:05}").open("w") as file:
        file.write(f"{number}" * 100)
        file.flush()
        os.fsync(file.fileno())


@pytest.mark.loop
@pytest.mark.reflink
@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
def test_fork_of_an_image_file_is_one_moment(
    fs_type: str, reflink_dir: Path, tmp_path: Path
) -> None:
    """What is written one after the other is in the fork up to some file, and all before that."""
    size = "64MiB" if fs_type == "ext4" else "300MiB"
    config = BlockfileConfig(fs_type=fs_type, scratch_size=size)
    root = reflink_dir / "sn"
    with Engine("blockfile", BLOCKFILE.load(config, root), root) as engine:
        with (
            temp_mount(engine.prepare("source"), dir=tmp_path) as source,
            repeated(lambda number: write_next(source, number)),
        ):
            forks = []
            for number in range(5):
                done = [path for path in sorted(source.iterdir()) if path.stat().st_size]
                forks.append((engine.fork("source", f"fork-{number}"), done[:-1]))
        for mounts, done in forks:
            with temp_mount(mounts, dir=tmp_path) as fork:
                files = sorted(fork.iterdir())
                assert [int(path.name) for path in files] == list(range(len(files)))
                assert len(files) >= len(done)
                for path in files[:-1]:
                    assert path.read_text() == f"{int(path.name)}" * 100
        assert engine.fsck() == []
        if fs_type == "ext4":
            subprocess.run(("e2fsck", "-fn", root / "snapshots/2"), check=True, capture_output=True)


@pytest.mark.loop
def test_fork_of_an_image_file_that_is_never_quiet(tmp_path: Path) -> None:
    """Without reflinks it is refused, rather than torn or frozen."""
    with (
        tmpfs(tmp_path / "disk", "size=200m") as disk,
        Engine("blockfile", BLOCKFILE.load(SMALL, disk / "sn"), disk / "sn") as engine,
        temp_mount(engine.prepare("source"), dir=tmp_path) as root,
    ):
        (root / "large").write_bytes(os.urandom(24 << 20))
        with (
            repeated(lambda number: write_next(root, number)),
            pytest.raises(FailedPrecondition, match=r"written to all the time.*unmount it"),
        ):
            engine.fork("source", "fork")
        mounts = engine.fork("source", "fork")
        with temp_mount(mounts, dir=tmp_path) as fork:
            assert (fork / "large").read_bytes() == (root / "large").read_bytes()

"""Several processes on one root: racing, killed at any moment, and the janitor."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamina.core.snapshot import Kind
from lamina.images.store import ImageStore
from lamina.meta.boot import boot_id
from lamina.meta.content import ContentTable
from lamina.snapshotters import find
from lamina.snapshotters.engine import Engine
from lamina.snapshotters.janitor import run as be_janitor
from lamina.snapshotters.wakeup import Janitor, janitor_lock
from tests.snapshot_loop import FILES, NAME, open_engine, top

pytestmark = pytest.mark.root

REPOSITORY = Path(__file__).parents[2]
SEED = 20261123
KILLS = {"overlayfs": 60, "native": 40}


@contextmanager
def loop(driver: str, root: Path, seed: object) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-m", "tests.snapshot_loop", driver, str(root), str(seed)]
    with subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def kill_one_of_two(driver: str, root: Path, seed: str) -> None:
    """Let two processes work, kill one at a random moment, and the other a little later."""
    chance = random.Random(seed)
    with loop(driver, root, f"{seed}-a") as first, loop(driver, root, f"{seed}-b") as second:
        for process in (first, second):
            wait_until_ready(process)
        for process in (first, second):
            time.sleep(chance.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL


def assert_sound(engine: Engine, root: Path) -> None:
    """Check the store against the disk, and every layer's content."""
    assert engine.fsck() == []
    for number, info in enumerate(engine.walk(["kind==committed"])):
        directory = top(engine.view(f"check-{number}", info.name))
        assert (directory / NAME).read_text() == info.name
        assert all((directory / f"file-{n}").exists() for n in range(FILES))
        engine.remove(f"check-{number}")
    engine.cleanup()
    assert engine.fsck() == []
    stored = {path.name for path in (root / "snapshots").iterdir()}
    assert len(stored) == len(list(engine.walk()))
    assert len(list((root / "owners").iterdir())) <= 1


@pytest.mark.parametrize("driver", KILLS)
def test_killed_at_random_moments(driver: str, tmp_path: Path) -> None:
    root = tmp_path / "sn"
    for number in range(KILLS[driver] // 2):
        seed = f"{SEED}-{driver}-{number}"
        print("seed", seed)
        kill_one_of_two(driver, root, seed)
        with open_engine(driver, root) as engine:
            engine.prepare("next-command")
            engine.remove("next-command")
            assert_sound(engine, root)
            for info in list(engine.walk(["kind!=committed"])):
                engine.remove(info.name)


def test_one_winner_per_key_and_unique_ids(tmp_path: Path) -> None:
    root = tmp_path / "sn"
    code = (
        "import sys; from pathlib import Path; from lamina.errors import AlreadyExists\n"
        "from tests.snapshot_loop import open_engine, top\n"
        "with open_engine('overlayfs', Path(sys.argv[1])) as engine:\n"
        "    for number in range(60):\n"
        "        try:\n"
        "            print(number, top(engine.prepare(f'key-{number}')).parent.name)\n"
        "        except AlreadyExists:\n"
        "            pass\n"
    )
    argv = [sys.executable, "-c", code, str(root)]
    with open_engine("overlayfs", root):
        processes = [
            subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
            for _ in range(4)
        ]
        outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    won = [line.split() for output in outputs for line in output.splitlines()]
    assert sorted(int(key) for key, _ in won) == list(range(60))
    assert len({id for _, id in won}) == 60


# The janitor


class Root:
    """A root with an overlayfs snapshotter that is registered with the janitor."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plugin = find("overlayfs")
        self.config = self.plugin.config()
        self.directory = self.plugin.directory(self.config, path)
        self.janitor = Janitor(path)

    def open(self, wake: Callable[[], None] | None = None) -> Engine:
        driver = self.plugin.load(self.config, self.directory)
        engine = Engine("overlayfs", driver, self.directory, wake=wake)
        self.janitor.register(self.plugin, self.config, self.directory)
        return engine

    def stored(self) -> set[str]:
        return {path.name for path in (self.directory / "snapshots").iterdir()}


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path)


def leave_work(engine: Engine, *names: str) -> None:
    """Leave one commit to sync and one snapshot to free for each name."""
    for name in names:
        engine.prepare("key")
        engine.commit(f"{name}-committed", "key")
        engine.prepare(name)
        engine.remove(name)


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_janitor_does_all_there_is_to_do(root: Root) -> None:
    with root.open() as engine:
        leave_work(engine, "a", "b")
        assert len(engine.backlog()) == 4
        be_janitor(root.path)
        assert not engine.pending()
        assert root.stored() == {"1", "3"}


def test_janitor_syncs_content(root: Root) -> None:
    with ImageStore(root.path) as store:
        with store.content.open_writer("some-blob") as writer:
            writer.write(b"content")
            digest = writer.commit()
        table = ContentTable(store.database, boot=boot_id())
        assert table.unsynced() == [digest]
        be_janitor(root.path)
        assert table.unsynced() == []


def test_woken_janitor_works_in_a_process_of_its_own(root: Root) -> None:
    with root.open(wake=root.janitor.wake) as engine:
        leave_work(engine, "a", "b")
        wait_for(lambda: not engine.pending())


def test_closing_hurries_a_wake_up(root: Root) -> None:
    with root.open(wake=root.janitor.wake) as engine:
        leave_work(engine, "a")
    root.janitor.close()
    with root.open() as engine:
        wait_for(lambda: not engine.pending())


def test_second_janitor_leaves_at_once(root: Root) -> None:
    with root.open() as engine, janitor_lock(root.path, fcntl.LOCK_EX) as locked:
        assert locked
        leave_work(engine, "a")
        be_janitor(root.path)
        assert engine.pending()


def test_wake_up_while_the_janitor_ends_is_not_lost(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work that appears between the janitor's last look and the end of its lock is still done."""
    with root.open() as engine:
        leave_work(engine, "a")
        close, late = Engine.close, ["b"]

        def close_and_leave_more(closing: Engine) -> None:
            close(closing)
            if late:
                leave_work(engine, late.pop())
                assert not may_start(root.path)

        monkeypatch.setattr(Engine, "close", close_and_leave_more)
        be_janitor(root.path)
        monkeypatch.undo()
        assert not late
        assert not engine.pending()


def may_start(path: Path) -> bool:
    with janitor_lock(path, fcntl.LOCK_SH) as free:
        return free


def test_janitor_ends_with_what_it_cannot_do(root: Root, tmp_path: Path) -> None:
    with root.open() as engine:
        engine.prepare("a")
        fs = root.directory / "snapshots/1/fs"
        subprocess.run(["mount", "-t", "tmpfs", "none", fs], check=True)
        try:
            engine.remove("a")
            leave_work(engine, "b")
            be_janitor(root.path)
            assert engine.backlog() == {("free", 1)}
        finally:
            subprocess.run(["umount", root.directory / "snapshots/rm-1/fs"], check=True)
        be_janitor(root.path)
        assert not engine.pending()


def test_janitor_survives_the_roots_removal(root: Root) -> None:
    with root.open():
        pass
    subprocess.run(["rm", "-r", root.directory], check=True)
    be_janitor(root.path)
    assert not root.directory.exists()
    argv = [sys.executable, "-m", "lamina.snapshotters.janitor", str(root.path / "missing")]
    assert subprocess.run(argv, capture_output=True).returncode == 0


def test_janitor_passes_over_a_broken_registration(root: Root) -> None:
    with root.open() as engine:
        leave_work(engine, "a")
        (root.path / "janitor.d/0.json").write_text("{}")
        (root.path / "janitor.d/1.json").write_text("nonsense")
        be_janitor(root.path)
        assert not engine.pending()


def test_janitor_is_idle_and_alone_in_its_session(root: Root) -> None:
    with root.open() as engine:
        leave_work(engine, "a")
        argv = [sys.executable, "-c",
                "import os, sys; from lamina.snapshotters import janitor\n"
                "janitor.run = lambda root: print(os.sched_getscheduler(0), os.getcwd())\n"
                "janitor.main(sys.argv[1:])", str(root.path)]  # fmt: skip
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        assert done.stdout.split() == [str(os.SCHED_IDLE), "/"]


def test_committed_work_survives_a_kill_before_the_janitor(root: Root) -> None:
    with root.open() as engine:
        leave_work(engine, "a")
    with root.open() as engine:
        assert engine.stat("a-committed").kind == Kind.COMMITTED
        assert engine.pending()

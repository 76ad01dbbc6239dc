"""A process that works on a snapshotter until it is killed: `python -m tests.snapshot_loop ...`.

Each layer has the file NAME, empty at first, then with the layer's name, so that a layer committed
by half would show.
"""

from __future__ import annotations

import itertools
import random
import sys
from pathlib import Path

from lamina.core.mount import Mount
from lamina.core.snapshot import Kind
from lamina.errors import LaminaError
from lamina.snapshotters import find
from lamina.snapshotters.engine import Engine

NAME = "name"
FILES = 20


def open_engine(driver: str, root: Path) -> Engine:
    plugin = find(driver)
    return Engine(driver, plugin.load(plugin.config(), root), root)


def top(mounts: list[Mount]) -> Path:
    """Return the uppermost directory of a snapshot without mounting it."""
    (mount,) = mounts
    if mount.type == "bind":
        return Path(mount.source)
    return Path(mount.option("upperdir") or (mount.option("lowerdir") or "").partition(":")[0])


def fill(directory: Path, name: str) -> None:
    for number in range(FILES):
        (directory / f"file-{number}").write_text(name)
    (directory / NAME).write_text(name)


def turn(engine: Engine, number: str, chance: random.Random) -> None:
    """Do one of the things that are done with snapshots, on what is there."""
    infos = list(engine.walk())
    committed = ["", *(info.name for info in infos if info.kind == Kind.COMMITTED)]
    match chance.randrange(6):
        case 0 | 1:
            mounts = engine.prepare(f"key-{number}", chance.choice(committed))
            fill(top(mounts), f"layer-{number}")
            engine.commit(f"layer-{number}", f"key-{number}")
        case 2:
            engine.prepare(f"active-{number}", chance.choice(committed))
        case 3:
            engine.view(f"view-{number}", chance.choice(committed))
        case 4:
            for info in chance.sample(infos, len(infos) // 3):
                engine.remove(info.name)
        case 5:
            engine.reap()
            engine.sync()


def main(driver: str, root: str, seed: str) -> None:
    chance = random.Random(seed)
    with open_engine(driver, Path(root)) as engine:
        print("ready", flush=True)
        for number in itertools.count():
            try:
                turn(engine, f"{seed}-{number}", chance)
            except LaminaError:
                continue  # another process removed it first


if __name__ == "__main__":
    main(*sys.argv[1:])

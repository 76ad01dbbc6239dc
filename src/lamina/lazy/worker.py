"""Program: serves the lazy layers of a root to the kernel, `python -m lamina.lazy.worker`.

Started by the holder. It may be killed at any time: the next worker answers what this one has
taken, and readers notice nothing but the wait. It ends by itself, and the holder with it, when no
layer needs a process any more.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from lamina.lazy.gates.objects import GROUP, GateObjects
from lamina.lazy.keeping import Keeper, worker_command
from lamina.lazy.layers import Layers
from lamina.lazy.served import ServedList
from lamina.lazy.server import Server
from lamina.linux.fanotify import has_marks
from lamina.linux.malloc import reuse_large_blocks, share_arenas

log = logging.getLogger(__name__)

LOCK = "worker.lock"
AGAIN = 75
"""Exit code that asks the holder for a new worker."""
_LOOK_SECONDS = 0.5
_PAUSE = 0.005


def main(arguments: list[str]) -> int:
    """Serve until nothing is needed any more.

    Args:
        arguments: how many seconds to wait for a new layer when nothing is needed any more, the
            holder's directory, and its task as JSON.

    Returns:
        an exit code of the holder's.
    """
    linger, directory = float(arguments[0]), Path(arguments[1])
    share_arenas()
    reuse_large_blocks()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGINT, signal.SIGTERM})
    os.chdir("/")
    Path("/proc/self/oom_score_adj").write_text("0")  # the holder's is not for what can be replaced
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    keeper = Keeper(json.loads(arguments[2]), directory, worker_command(linger))
    try:
        _take_lock(directory, keeper)
    except FileNotFoundError:
        return _abandon(keeper, directory)
    objects = GateObjects(keeper, directory)
    threading.Thread(target=_follow, args=(keeper,), name="holder", daemon=True).start()
    layers = Layers(ServedList(directory), objects)
    layers.open_all()
    objects.start()
    server = Server(directory, keeper, layers, linger)
    if not server.run():
        return AGAIN  # what is being filled is the next worker's, as after a kill
    layers.close()
    return 0


def _take_lock(directory: Path, keeper: Keeper) -> None:
    """Wait until no other worker is left: two must never answer events by their numbers.

    A holder that is killed with its worker may have started this one just before: its successor
    has another, and this process ends.
    """
    lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while not _locked(lock):
        if keeper.is_superseded():
            os._exit(1)
        time.sleep(_PAUSE)


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _abandon(keeper: Keeper, directory: Path) -> int:
    """Wait for the end when the directory was deleted, and with it what layers there are.

    Readers of marked files wait for ever, rather than read what is not there. The mark goes with
    the last of them.
    """
    log.error("%s is gone", directory)
    group = keeper.kept.get(GROUP)
    while group is not None and has_marks(group):
        time.sleep(_LOOK_SECONDS)
    return 0


def _follow(keeper: Keeper) -> None:
    """Take the holder's place when it dies."""
    keeper.wait()
    log.warning("the holder has died")
    keeper.succeed()


if __name__ == "__main__":
    code = main(sys.argv[1:])
    # Threads may still wait for something, and nothing is left to be written.
    os._exit(code)

"""Runs a program in the foreground as if it were this one: same terminal, signals, exit code.

Nothing is copied: the program has this process's standard streams themselves. Signals reach it
too, with one exception: what the kernel sends to the terminal's whole foreground process group
(Ctrl-C, a resized window) has reached it already.
"""

from __future__ import annotations

import os
import signal
import termios
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_Action = tuple[int, int, str, int, int] | tuple[int, int, int]

_OWN = frozenset(
    {
        signal.SIGKILL,
        signal.SIGSTOP,
        # Faults of this very process.
        signal.SIGSEGV,
        signal.SIGBUS,
        signal.SIGILL,
        signal.SIGFPE,
        signal.SIGTRAP,
        signal.SIGABRT,
        signal.SIGSYS,
        # Job control: this process has to stop and go on together with the shell's job.
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGTTOU,
        signal.SIGCONT,
        signal.SIGPIPE,
    }
)
_FORWARDED = frozenset(signal.valid_signals()) - _OWN - {signal.SIGCHLD}
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
_NULL_STREAMS: list[_Action] = [
    (os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)
]
_POLL_SECONDS = 1.0


@contextmanager
def signals_held() -> Iterator[None]:
    """Keep signals that are to be forwarded pending, for `run_foreground` in this or a new thread.

    Those still pending at the end are delivered then, in the usual way.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*_FORWARDED, signal.SIGCHLD})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_foreground(
    argv: list[str],
    env: Mapping[str, str],
    *,
    forward: bool,
    null_io: bool = False,
    stdout: int | None = None,
) -> int:
    """Run a program to its end and return its exit code, 128 + N when signal N killed it.

    Args:
        argv: the program, by its path, and its arguments.
        env: its environment.
        forward: pass signals on; the caller holds them (`signals_held`) in every thread.
        null_io: its standard streams are /dev/null.
        stdout: descriptor that becomes its standard output.

    Raises:
        OSError: it cannot be executed.
    """
    actions = list(_NULL_STREAMS) if null_io else []
    if stdout is not None:
        actions.append((os.POSIX_SPAWN_DUP2, stdout, 1))
    with terminal_restored():
        child = os.posix_spawn(
            argv[0],
            argv,
            env,
            file_actions=actions,
            setsigmask=[],
            setsigdef=_IGNORED_BY_PYTHON,
        )
        code = _forward_until_exit(child) if forward else _wait(child)
    return 128 - code if code < 0 else code


@contextmanager
def terminal_restored() -> Iterator[None]:
    """Give the terminal on standard input back in the mode it was in, whatever happened."""
    try:
        before = termios.tcgetattr(0)
    except (termios.error, OSError):
        yield
        return
    try:
        yield
    finally:
        if termios.tcgetattr(0) != before:
            termios.tcsetattr(0, termios.TCSADRAIN, before)


def _wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _forward_until_exit(child: int) -> int:
    watched = {*_FORWARDED, signal.SIGCHLD}
    while True:
        # With a time limit, because a thread that does not hold SIGCHLD would swallow it.
        info = signal.sigtimedwait(watched, _POLL_SECONDS)
        if info is not None and info.si_signo != signal.SIGCHLD:
            # A positive code says that the kernel sent it (SI_KERNEL), others that a process did.
            if info.si_code <= 0:
                os.kill(child, info.si_signo)
            continue
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)

"""Run only when nobody else wants the processor or the disk."""

from __future__ import annotations

import ctypes
import errno
import os

from lamina.linux.libc import system_call

_IOPRIO_WHO_PROCESS = 1
_IOPRIO_CLASS_IDLE = 3 << 13

# ioprio_set(2) has no function in the C library and, being old, a number per architecture.
_SYS_IOPRIO_SET = {
    "x86_64": 251,
    "aarch64": 30,
    "riscv64": 30,
    "loongarch64": 30,
    "ppc64le": 273,
    "s390x": 282,
    "armv7l": 314,
}


def become_idle() -> None:
    """Give the calling thread, and threads and processes it starts, SCHED_IDLE and idle I/O.

    The way back needs a privilege that containers often lack: meant for background workers.

    Raises:
        OSError: ENOSYS: this architecture's ioprio_set is not known here.
    """
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    set_idle_io()


def set_idle_io() -> None:
    """Give the calling thread the idle I/O class; the scheduler of the disk must know classes."""
    machine = os.uname().machine
    number = _SYS_IOPRIO_SET.get(machine)
    if number is None:
        raise OSError(errno.ENOSYS, f"ioprio_set has no known number on {machine}")
    ioprio_set = system_call(number, ctypes.c_int, ctypes.c_int, ctypes.c_int)
    ioprio_set(_IOPRIO_WHO_PROCESS, 0, _IOPRIO_CLASS_IDLE)

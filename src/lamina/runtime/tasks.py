"""Tasks: the running side of containers. A container has one from its start until it is removed.

Nothing is recorded of a task but what its supervisor and the runtime write into the bundle, so
what is told of it is what is so now, whoever started it and whatever was killed since.
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lamina.errors import FailedPrecondition, InvalidArgument, NotFound
from lamina.meta.containers import Container
from lamina.runtime.bundle import Bundle, Busy
from lamina.runtime.containers import STOP_SIGNAL_LABEL, Containers

UNKNOWN_EXIT_CODE = 255
"""Of a task whose supervisor was killed; containerd's number for it."""
_KILLED = 128 + signal.SIGKILL
_ENDING_SECONDS = 10.0
"""Long enough for a supervisor to clear up after a container that has ended."""


class TaskStatus(enum.StrEnum):
    """State of a task, spelled as `ctr tasks ls` does."""

    CREATED = "CREATED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    STOPPED = "STOPPED"


class Task(NamedTuple):
    """What is so of a container's task; `exit_code` is None until it has stopped."""

    id: str
    pid: int
    status: TaskStatus
    exit_code: int | None = None


class Tasks:
    """The tasks of one store's containers."""

    def __init__(self, containers: Containers) -> None:
        self.containers = containers

    def list(self) -> Iterator[Task]:
        """Yield the task of every container that has one."""
        for container in self.containers.list():
            task = self._find(container)
            if task is not None:
                yield task

    def get(self, id: str) -> Task:
        """Return the task of a container.

        Raises:
            NotFound: no such container, or it has no task.
        """
        task = self._find(self.containers.records.get(id))
        if task is None:
            raise NotFound("task of container", id, hint="it is not running, or was never started")
        return task

    def alive(self, id: str) -> tuple[Container, Task]:
        """Return a container and its task, which has not ended.

        Raises:
            NotFound: it has no task.
            FailedPrecondition: the task has ended.
        """
        task = self.get(id)
        if task.status == TaskStatus.STOPPED:
            raise FailedPrecondition("use the task of container", id, hint="it has ended")
        return self.containers.records.get(id), task

    def kill(self, id: str, signal: int | None = None, *, everyone: bool = False) -> None:
        """Send a signal to a container's first process, or to all of its processes.

        Args:
            id: the container.
            signal: number; None for the image's stop signal, which is mostly SIGTERM.
            everyone: to all.

        Raises:
            FailedPrecondition: it has ended already.
        """
        container, _ = self.alive(id)
        number = self._stop_signal(container) if signal is None else signal
        self.containers.runtime(container).kill(id, number, everyone=everyone)

    def remove(self, id: str, *, force: bool = False) -> int:
        """Remove a container's task; the container stays.

        Args:
            id: the container.
            force: kill it first.

        Returns:
            the exit code of the task, UNKNOWN_EXIT_CODE where nobody knows it.

        Raises:
            NotFound: it has no task.
            FailedPrecondition: it runs, and `force` is not given.
        """
        container = self.containers.records.get(id)
        task = self.get(id)
        if task.status != TaskStatus.STOPPED and not force:
            raise _running(id)
        if task.status != TaskStatus.STOPPED:
            self._kill_all(container, task)
        bundle = self.containers.bundle(id)
        try:
            with bundle.locked(wait_seconds=_ENDING_SECONDS):
                return self._remove_locked(container, bundle)
        except Busy as error:
            raise _running(id) from error

    def pause(self, id: str) -> None:
        """Freeze every process of a container."""
        container, _ = self.alive(id)
        self.containers.runtime(container).pause(id)

    def resume(self, id: str) -> None:
        """Let a frozen container go on."""
        container, _ = self.alive(id)
        self.containers.runtime(container).resume(id)

    def processes(self, id: str) -> Sequence[int]:
        """Return the ids, on the host, of a container's processes."""
        container, _ = self.alive(id)
        return self.containers.runtime(container).processes(id)

    def _find(self, container: Container) -> Task | None:
        bundle = self.containers.bundle(container.id)
        ended = bundle.read_exit()
        if ended is not None:
            return Task(container.id, ended.pid, TaskStatus.STOPPED, ended.code)
        state = self.containers.runtime(container).state(container.id)
        if state is None:
            return None
        status = TaskStatus(state.status.upper())
        if status != TaskStatus.STOPPED:
            return Task(container.id, state.pid, status)
        return Task(container.id, bundle.pid(), status, UNKNOWN_EXIT_CODE)

    def _stop_signal(self, container: Container) -> int:
        return parse_signal(container.labels.get(STOP_SIGNAL_LABEL, "SIGTERM"))

    def _kill_all(self, container: Container, task: Task) -> None:
        runtime = self.containers.runtime(container)
        if task.status == TaskStatus.PAUSED:
            # In cgroup v1 a frozen process dies only when it thaws.
            runtime.resume(container.id)
        runtime.kill(container.id, signal.SIGKILL, everyone=True)

    def _remove_locked(self, container: Container, bundle: Bundle) -> int:
        if self.containers.records.find(container.id) is None:
            # A throw-away container's supervisor has removed all; taking the lock made it anew.
            bundle.remove()
            return _KILLED
        task = self._find(container)
        if task is None:
            return _KILLED
        if task.status != TaskStatus.STOPPED:
            raise _running(container.id)
        self.containers.runtime(container).delete(container.id)
        bundle.forget_task()
        return UNKNOWN_EXIT_CODE if task.exit_code is None else task.exit_code


def parse_signal(text: str) -> int:
    """Return the number of a signal given as `9`, `KILL` or `SIGKILL`.

    Raises:
        InvalidArgument: there is no such signal.
    """
    if text.isascii() and text.isdigit():
        number = int(text[:6])
        if number in signal.valid_signals():
            return number
    else:
        name = text.upper().removeprefix("SIG")
        found = signal.Signals.__members__.get(f"SIG{name}")
        if found is not None:
            return int(found)
    raise InvalidArgument("parse signal", text, hint="write a name such as SIGTERM, or a number")


def _running(id: str) -> FailedPrecondition:
    return FailedPrecondition(
        "remove the task of container", id, hint="it is running: kill it first, or use -f"
    )

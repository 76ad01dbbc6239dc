"""Device-mapper's control device: one method for each ioctl, and the nodes in /dev/mapper."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
from collections.abc import Sequence
from types import TracebackType

from lamina.linux.dm import layout, nodes, udev
from lamina.linux.dm.layout import DeviceInfo, Listed, Target
from lamina.linux.libc import function

log = logging.getLogger(__name__)

_ROOM = 16384
"""Bytes for an answer of unknown length; doubled until the answer fits."""
_UDEV_SECONDS = 10.0

# Not fcntl.ioctl: with a buffer of more than 1024 bytes that keeps all other threads waiting.
_ioctl = function("ioctl", ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)


class DeviceMapper:
    """The open control device; needs CAP_SYS_ADMIN. Threads may share it.

    Devices are named, without /dev/mapper. An OSError has the device as its file name; ENXIO means
    that there is no such device, EBUSY that it is in use (or, for `create`, that the name is).

    Whoever puts a table into effect or takes a device away finds /dev/mapper in order afterwards:
    where udev runs it is waited for, elsewhere the nodes are made and removed here.
    """

    def __init__(self, *, wait_for_udev: bool | None = None) -> None:
        """Open the control device, which loads the kernel's module.

        Args:
            wait_for_udev: whether udev makes the nodes; None to find out.

        Raises:
            OSError: ENODEV when the kernel has no device-mapper, EACCES without rights.
        """
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            self._fd = os.open(nodes.CONTROL, flags)
        except FileNotFoundError:
            nodes.make_control()
            self._fd = os.open(nodes.CONTROL, flags)
        self._wait_for_udev = udev.running() if wait_for_udev is None else wait_for_udev

    def __enter__(self) -> DeviceMapper:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the control device."""
        os.close(self._fd)

    def version(self) -> tuple[int, int, int]:
        """Return the version of the kernel's interface."""
        buffer = layout.pack()
        self._ioctl("version", layout.DM_VERSION, "", buffer)
        major, minor, patch = layout.header_of(buffer).version
        return major, minor, patch

    def targets(self) -> dict[str, tuple[int, int, int]]:
        """Return the types of targets that are there, and their versions."""
        _, answer = self._read("list targets", layout.DM_LIST_VERSIONS)
        return layout.parse_versions(answer)

    def devices(self) -> list[Listed]:
        """List all devices."""
        _, answer = self._read("list devices", layout.DM_LIST_DEVICES)
        return layout.parse_names(answer)

    def create(self, name: str, *, uuid: str = "") -> DeviceInfo:
        """Make a device that has no table and no node yet.

        Raises:
            OSError: EBUSY when the name or the uuid is taken.
        """
        buffer = layout.pack(name=name, uuid=uuid)
        self._ioctl("create", layout.DM_DEV_CREATE, name, buffer)
        return layout.parse_info(layout.header_of(buffer))

    def load(self, name: str, table: Sequence[Target], *, read_only: bool = False) -> None:
        """Load a table, which the next `resume` puts into effect.

        Raises:
            OSError: EINVAL when a target refuses its arguments (the kernel's log says which), or
                has no module.
        """
        buffer = layout.pack(
            name=name,
            flags=layout.DM_READONLY_FLAG if read_only else 0,
            target_count=len(table),
            payload=layout.pack_targets(table),
        )
        self._ioctl("load table", layout.DM_TABLE_LOAD, name, buffer)

    def clear(self, name: str) -> None:
        """Drop the table that was loaded and is not in effect."""
        self._ioctl("clear table", layout.DM_TABLE_CLEAR, name, layout.pack(name=name))

    def suspend(self, name: str, *, flush: bool = True, freeze: bool = True) -> None:
        """Hold I/O back, once what is under way is done.

        Args:
            name: the device.
            flush: let the target finish what it has queued; a pool that is out of space never
                does.
            freeze: freeze the filesystem on it, which makes what is on the disk consistent.
        """
        flags = layout.DM_SUSPEND_FLAG
        flags |= 0 if flush else layout.DM_NOFLUSH_FLAG
        flags |= 0 if freeze else layout.DM_SKIP_LOCKFS_FLAG
        buffer = layout.pack(name=name, flags=flags)
        self._ioctl("suspend", layout.DM_DEV_SUSPEND, name, buffer)

    def resume(self, name: str) -> DeviceInfo:
        """Put the loaded table into effect, if there is one, let I/O go on, and make the node."""
        # udev has nothing to do where the device is what it was: that is not waited for.
        wait = self._wait_for_udev and self.info(name).has_inactive_table
        header = self._change("resume", layout.DM_DEV_SUSPEND, name, wait=wait)
        nodes.make(nodes.node(name), header.dev)
        return layout.parse_info(header)

    def remove(self, name: str, *, deferred: bool = False) -> bool:
        """Take a device away, and its node.

        Args:
            name: the device.
            deferred: if it is in use, let it go when the last closes it; nobody new can find it
                in /dev/mapper.

        Returns:
            Whether it is gone already.

        Raises:
            OSError: EBUSY when it is in use, and not `deferred`.
        """
        flags = layout.DM_DEFERRED_REMOVE if deferred else 0
        number = self.info(name).number
        header = self._change("remove", layout.DM_DEV_REMOVE, name, flags, wait=self._wait_for_udev)
        nodes.remove(nodes.node(name), number)
        return not header.flags & layout.DM_DEFERRED_REMOVE

    def info(self, name: str) -> DeviceInfo:
        """Return a device's state.

        Raises:
            OSError: ENXIO when there is none of that name.
        """
        buffer = layout.pack(name=name)
        self._ioctl("info", layout.DM_DEV_STATUS, name, buffer)
        return layout.parse_info(layout.header_of(buffer))

    def find(self, name: str) -> DeviceInfo | None:
        """Return a device's state; None when there is none of that name."""
        try:
            return self.info(name)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return None

    def table(self, name: str) -> list[Target]:
        """Return the table in effect; nothing where there is none."""
        return self._targets("table", name, layout.DM_STATUS_TABLE_FLAG)

    def status(self, name: str, *, flush: bool = True) -> list[Target]:
        """Return what the targets in effect say of themselves.

        Args:
            name: the device.
            flush: let a thin pool write its metadata first, so that its figures are current. It
                must be False where that could block, as in a pool that is out of metadata space.
        """
        return self._targets("status", name, 0 if flush else layout.DM_NOFLUSH_FLAG)

    def dependencies(self, name: str) -> list[int]:
        """Return the dev_t of each device that the table in effect uses."""
        _, answer = self._read("dependencies", layout.DM_TABLE_DEPS, name)
        return layout.parse_deps(answer)

    def message(self, name: str, text: str, *, sector: int = 0) -> str:
        """Send a message to the target that maps `sector`; return its answer, mostly "".

        Raises:
            OSError: what the target means by it. EINVAL when it does not know the message,
                EMSGSIZE when its answer is longer than 16 KiB.
        """
        payload = layout.pack_message(sector, text)
        buffer = layout.pack(name=name, payload=payload, room=_ROOM)
        self._ioctl(f"message {text!r}", layout.DM_TARGET_MSG, name, buffer)
        flags = layout.header_of(buffer).flags
        if flags & layout.DM_BUFFER_FULL_FLAG:  # a second try would be a second message
            raise OSError(errno.EMSGSIZE, f"device-mapper: message {text!r}: long answer", name)
        has_answer = flags & layout.DM_DATA_OUT_FLAG
        return layout.parse_text(layout.answer_of(buffer)) if has_answer else ""

    def activate(
        self, name: str, table: Sequence[Target], *, uuid: str = "", read_only: bool = False
    ) -> DeviceInfo:
        """Make a device with its table in effect and its node in /dev/mapper, or nothing.

        Raises:
            OSError: as `create` and `load` do.
        """
        self.create(name, uuid=uuid)
        try:
            self.load(name, table, read_only=read_only)
            return self.resume(name)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                self.remove(name, deferred=True)
            raise

    def _targets(self, what: str, name: str, flags: int) -> list[Target]:
        header, answer = self._read(what, layout.DM_TABLE_STATUS, name, flags)
        return layout.parse_targets(answer, header.target_count)

    def _read(
        self, what: str, command: int, name: str = "", flags: int = 0
    ) -> tuple[layout.DmIoctl, bytes]:
        """Run a command that changes nothing, again with more room until its answer fits."""
        room = _ROOM
        while True:
            buffer = layout.pack(name=name, flags=flags, room=room)
            self._ioctl(what, command, name, buffer)
            header = layout.header_of(buffer)
            if not header.flags & layout.DM_BUFFER_FULL_FLAG:
                return header, layout.answer_of(buffer)
            room *= 2

    def _change(
        self, what: str, command: int, name: str, flags: int = 0, *, wait: bool
    ) -> layout.DmIoctl:
        """Run a command that raises a uevent, and `wait` until udev has handled that."""
        answers: list[layout.DmIoctl] = []

        def change(event_number: int) -> bool:
            buffer = layout.pack(name=name, flags=flags, event_number=event_number)
            self._ioctl(what, command, name, buffer)
            answers.append(layout.header_of(buffer))
            return bool(answers[0].flags & layout.DM_UEVENT_GENERATED_FLAG)

        if not wait:
            change(0)
        elif not udev.settle(change, timeout_seconds=_UDEV_SECONDS):
            log.warning("udev does not answer; it is not waited for again", extra={"device": name})
            self._wait_for_udev = False
        return answers[0]

    def _ioctl(self, what: str, command: int, name: str, buffer: bytearray) -> None:
        argument = (ctypes.c_char * len(buffer)).from_buffer(buffer)
        try:
            _ioctl(self._fd, layout.request(command), argument)
        except OSError as error:
            text = f"device-mapper: {what}: {error.strerror}"
            raise OSError(error.errno, text, name or None) from error

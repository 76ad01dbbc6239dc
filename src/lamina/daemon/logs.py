"""Log lines as containerd writes them: logrus's text format, or JSON.

A field is an attribute that `extra=` gives a record. Whoever logs puts no secrets there; labels are
never logged, since remote snapshotters get credentials in them.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from queue import Empty, SimpleQueue

_LEVELS = {
    "trace": 5,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
    "panic": logging.CRITICAL,
}
# From the least number on; logrus writes `warning` where its configuration says `warn`.
_NAMES = ((50, "fatal"), (40, "error"), (30, "warning"), (20, "info"), (10, "debug"), (0, "trace"))
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_RESERVED = frozenset({"time", "level", "msg"})
_PLAIN = re.compile(r"[A-Za-z0-9\-._/@^+]*\Z")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n",
            "\r": "\\r", "\t": "\\t", "\v": "\\v"}  # fmt: skip
_LONGEST_QUEUE = 10_000
_FLUSH_SECONDS = 2.0
_RETRY_SECONDS = 0.05


class TextFormatter(logging.Formatter):
    """`time="RFC 3339" level=info msg="..." key=value ...`, fields in order of their names."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        words = [f"{key}={_quoted(value)}" for key, value in _entries(record)]
        return " ".join(words)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, its keys in order."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        return json.dumps(dict(_entries(record)), sort_keys=True, default=str)


def _entries(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    yield "time", rfc3339(int(record.created * 1e9))
    yield "level", next(name for number, name in _NAMES if record.levelno >= number)
    yield "msg", record.getMessage()
    fields = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    if record.exc_info:
        fields["stack"] = logging.Formatter().formatException(record.exc_info)
    for key in sorted(fields):
        yield f"fields.{key}" if key in _RESERVED else key, fields[key]


def rfc3339(nanoseconds: int) -> str:
    """Return a time as containerd prints it: local, always nine digits of a second."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    local = time.localtime(seconds)
    if not local.tm_gmtoff:
        zone = "Z"
    else:
        hours, minutes = divmod(abs(local.tm_gmtoff) // 60, 60)
        zone = f"{'-' if local.tm_gmtoff < 0 else '+'}{hours:02}:{minutes:02}"
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', local)}.{rest:09}{zone}"


def _quoted(value: object) -> str:
    """Return a value as logrus does: quoted as Go's %q where it has unusual characters."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if _PLAIN.match(text):
        return text
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character
    number = ord(character)
    if number < 0x80:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


class LineWriter(logging.Handler):
    """Writes lines to a descriptor from a thread of its own.

    A reader that is slow, such as a busy journal, must not hold up calls. When too many lines wait,
    further ones are left out, and their number is said later.
    """

    def __init__(self, formatter: logging.Formatter, fd: int) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._fd = fd
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._left_out = 0
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line."""
        try:
            line = self.format(record)
        except Exception:  # a wrong format string is no reason to fail a call
            self.handleError(record)
            return
        if self._lines.qsize() < _LONGEST_QUEUE:
            self._lines.put(line)
        else:
            self._left_out += 1

    def close(self) -> None:
        """Write what waits, unless the reader has stopped reading."""
        self._lines.put(None)
        self._thread.join(_FLUSH_SECONDS)
        super().close()

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            lines = [line, *self._waiting()]
            ended = lines[-1] is None
            text = "".join(f"{line}\n" for line in lines if line is not None)
            text += self._confession()
            try:
                _write(self._fd, text.encode(errors="replace"))
            except OSError:
                return  # nobody can be told
            if ended:
                return

    def _waiting(self) -> Iterator[str | None]:
        """Yield the lines that wait by now, up to the end mark."""
        line: str | None = ""
        while line is not None:
            try:
                line = self._lines.get_nowait()
            except Empty:
                return
            yield line

    def _confession(self) -> str:
        """Return a line that says how many were left out; "" if none were."""
        self.acquire()
        left_out, self._left_out = self._left_out, 0
        self.release()
        if not left_out:
            return ""
        text = f"left out {left_out} log lines"
        record = logging.LogRecord(__name__, logging.WARNING, "", 0, text, (), None)
        return f"{self.format(record)}\n"


def _write(fd: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:  # whoever shares the descriptor has made it so
            time.sleep(_RETRY_SECONDS)


def start_logging(level: str, format: str) -> LineWriter:
    """Send all log lines to standard error; the caller closes what is returned, at the end.

    Args:
        level: one of containerd's; "" for `info`.
        format: `text` or `json`; "" for `text`.
    """
    formatter = JsonFormatter() if format == "json" else TextFormatter()
    writer = LineWriter(formatter, sys.__stderr__.fileno() if sys.__stderr__ else 2)
    root = logging.getLogger()
    root.handlers[:] = [writer]
    root.setLevel(logging.WARNING)
    own = logging.getLogger("lamina")
    own.handlers.clear()
    own.setLevel(_LEVELS[level or "info"])
    logging.raiseExceptions = False
    return writer

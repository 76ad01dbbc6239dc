"""Log lines: logrus's text format, JSON, and a reader that does not read."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterator

import pytest

from lamina.daemon.logs import JsonFormatter, LineWriter, TextFormatter, rfc3339, start_logging


def record(message: str, level: int = logging.INFO, **fields: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"msg": message, "levelno": level, "created": 1_700_000_000.5})
    vars(made).update(fields)
    return made


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "CET-1")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC0")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("utc")
def test_a_line_of_text() -> None:
    line = TextFormatter().format(
        record("call failed", logging.WARNING, key="a/b c", method="Stat", zero=0)
    )
    assert line == (
        'time="2023-11-14T22:13:20.500000000Z" level=warning msg="call failed"'
        ' key="a/b c" method=Stat zero=0'
    )


@pytest.mark.usefixtures("berlin")
def test_time_is_local_with_nine_digits() -> None:
    assert rfc3339(1_700_000_000_000_000_007) == "2023-11-14T23:13:20.000000007+01:00"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain-1.2_/@^+", "plain-1.2_/@^+"),
        ("", ""),
        ("two words", '"two words"'),
        ("a:b", '"a:b"'),
        ("ünïcode", '"ünïcode"'),
        ('a"b\\', '"a\\"b\\\\"'),
        ("a\nb\t\x00\x7f", '"a\\nb\\t\\x00\\x7f"'),
        ("\u200b\U000e0001", '"\\u200b\\U000e0001"'),
        (ValueError("x y"), '"x y"'),
        (True, "true"),
    ],
)
def test_values_are_quoted_as_logrus_does(value: object, written: str) -> None:
    assert TextFormatter().format(record("m", v=value)).endswith(f" v={written}")


@pytest.mark.parametrize(
    ("level", "name"),
    [
        (5, "trace"),
        (logging.DEBUG, "debug"),
        (logging.INFO, "info"),
        (logging.WARNING, "warning"),
        (logging.ERROR, "error"),
        (logging.CRITICAL, "fatal"),
    ],
)
def test_names_of_levels(level: int, name: str) -> None:
    assert f" level={name} " in TextFormatter().format(record("m", level))


@pytest.mark.usefixtures("utc")
def test_a_line_of_json() -> None:
    line = JsonFormatter().format(record("call\nfailed", key="ü", time="mine"))
    assert "\n" not in line
    assert json.loads(line) == {
        "fields.time": "mine",
        "key": "ü",
        "level": "info",
        "msg": "call\nfailed",
        "time": "2023-11-14T22:13:20.500000000Z",
    }


def test_a_traceback_stays_in_one_line() -> None:
    try:
        raise ValueError("deep\ndown")
    except ValueError as error:
        made = record("bad", exc_info=(type(error), error, error.__traceback__))
    line = TextFormatter().format(made)
    assert "\n" not in line
    assert "ValueError: deep\\ndown" in line


@pytest.fixture
def untouched_logging() -> Iterator[None]:
    root, own = logging.getLogger(), logging.getLogger("lamina")
    before = (root.handlers[:], root.level, own.handlers[:], own.level, logging.raiseExceptions)
    yield
    root.handlers[:], own.handlers[:] = before[0], before[2]
    root.setLevel(before[1])
    own.setLevel(before[3])
    logging.raiseExceptions = before[4]


@pytest.mark.usefixtures("untouched_logging")
def test_levels_of_the_configuration() -> None:
    for level, shown in (("", logging.INFO), ("trace", 5), ("warn", logging.WARNING)):
        start_logging(level, "text").close()
        assert logging.getLogger("lamina.daemon").isEnabledFor(shown)
        assert not logging.getLogger("lamina.daemon").isEnabledFor(shown - 1)
        assert not logging.getLogger("urllib3").isEnabledFor(logging.INFO)


def test_close_writes_what_waits() -> None:
    reading, writing = os.pipe()
    writer = LineWriter(TextFormatter(), writing)
    for number in range(100):
        writer.handle(record("line", number=number))
    writer.close()
    os.close(writing)
    with open(reading) as pipe:
        lines = pipe.read().splitlines()
    assert [line.rpartition("number=")[2] for line in lines] == [
        str(number) for number in range(100)
    ]


def test_a_reader_that_does_not_read_holds_nobody_up() -> None:
    reading, writing = os.pipe()
    writer = LineWriter(TextFormatter(), writing)
    began = time.monotonic()
    for _ in range(13_000):
        writer.handle(record("x" * 100))
    assert time.monotonic() - began < 10
    text: list[str] = []
    with open(reading) as pipe:
        reader = threading.Thread(target=lambda: text.append(pipe.read()))
        reader.start()
        writer.close()
        os.close(writing)
        reader.join()
    left_out = re.search(r'level=warning msg="left out (\d+) log lines"\n', text[0])
    assert left_out is not None
    assert text[0].count("xxx\n") + int(left_out[1]) == 13_000


def test_a_reader_that_is_gone() -> None:
    reading, writing = os.pipe()
    writer = LineWriter(TextFormatter(), writing)
    os.close(reading)
    for _ in range(10):
        writer.handle(record("x"))
    writer.close()
    os.close(writing)

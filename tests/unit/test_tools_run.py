from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from lamina.errors import ToolError
from lamina.tools.fuse_overlayfs import parse_version
from lamina.tools.run import NOT_FOUND, TIMED_OUT, run

PYTHON = sys.executable


def test_outputs_and_code() -> None:
    done = run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout=10, success=(3,))
    assert (done.code, done.stdout, done.stderr) == (3, b"out\n", "err\n")


def test_failure_has_code_and_the_last_line() -> None:
    with pytest.raises(ToolError, match="exited with 4: the reason") as caught:
        run(["sh", "-c", "echo noise >&2; echo the reason >&2; exit 4"], timeout=10)
    assert caught.value.code == 4
    assert caught.value.stderr == "noise\nthe reason\n"


def test_standard_input_is_empty_and_the_locale_is_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("LAMINA_X", "kept")
    done = run(["sh", "-c", 'cat; echo "$LC_ALL $LAMINA_X"'], timeout=10)
    assert done.stdout == b"C kept\n"


def test_given_input_is_read() -> None:
    assert run(["cat"], timeout=10, input=b"in").stdout == b"in"


def test_arguments_are_never_a_shells() -> None:
    assert run(["printf", "%s", "$(id) ; `x`"], timeout=10).stdout == b"$(id) ; `x`"


def test_timeout_kills() -> None:
    started = time.monotonic()
    with pytest.raises(ToolError, match=r"no end after 0\.3 s") as caught:
        run(["sh", "-c", "echo waiting >&2; exec sleep 60"], timeout=0.3)
    assert caught.value.code == TIMED_OUT
    assert "waiting" in caught.value.stderr
    assert time.monotonic() - started < 10


def test_death_by_signal() -> None:
    with pytest.raises(ToolError, match="killed by signal 15") as caught:
        run(["sh", "-c", "kill -TERM $$"], timeout=10)
    assert caught.value.code == -signal.SIGTERM


def test_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ToolError, match="apt-get install fuse3") as caught:
        run(["fusermount3", "-u", "/x"], timeout=10)
    assert caught.value.code == NOT_FOUND
    with pytest.raises(ToolError, match="install frobnicate or add it to PATH"):
        run(["frobnicate"], timeout=10)


def test_missing_directory_is_not_a_missing_program(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="no such directory"):
        run(["true"], timeout=10, cwd=tmp_path / "gone")


def test_not_executable(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("")
    with pytest.raises(ToolError, match="not executable"):
        run([program], timeout=10)


def test_only_named_descriptors_are_inherited() -> None:
    read, write = os.pipe()
    os.set_inheritable(read, True)
    code = f"import os; print(os.path.exists('/proc/self/fd/{read}'))"
    try:
        assert run([PYTHON, "-c", code], timeout=10).stdout == b"False\n"
        assert run([PYTHON, "-c", code], timeout=10, pass_fds=(read,)).stdout == b"True\n"
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize(
    ("said", "version"),
    [
        (
            "fusermount3 version: 3.14.0\nfuse-overlayfs: version 1.10\nFUSE library version",
            (1, 10),
        ),
        ("fuse-overlayfs: version 1.13-dev\n", (1, 13)),
        ("fuse-overlayfs: version 0.7.8", (0, 7, 8)),
        ("usage: ...", ()),
    ],
)
def test_version_of_fuse_overlayfs(said: str, version: tuple[int, ...]) -> None:
    assert parse_version(said) == version

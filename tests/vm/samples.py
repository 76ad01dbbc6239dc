"""Tests for the harness to run: one of each outcome, and one that ends its machine."""

from __future__ import annotations

import subprocess

import pytest

from tests.vm.machine import in_guest

in_samples = pytest.mark.dm(boot="samples")
in_dying = pytest.mark.dm(boot="dying")


@pytest.fixture
def broken() -> None:
    raise RuntimeError("no such luck")


@in_samples
@pytest.mark.parametrize("text", ["plain", "a::b [c] d"])
def test_passes(text: str) -> None:
    assert in_guest(), text


@in_samples
def test_fails() -> None:
    print("said before")
    assert not in_guest()


@in_samples
def test_skips() -> None:
    pytest.skip("for a reason")


@in_samples
@pytest.mark.xfail(strict=True)
def test_is_expected_to_fail() -> None:
    raise AssertionError


@in_samples
@pytest.mark.usefixtures("broken")
def test_cannot_start() -> None:
    pass


@in_dying
def test_ends_before() -> None:
    assert in_guest()


@in_dying
def test_ends_the_machine() -> None:
    if in_guest():
        subprocess.run(("busybox", "poweroff", "-f"))


@in_dying
def test_never_starts() -> None:
    pass

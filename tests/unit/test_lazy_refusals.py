"""What is refused for a moment after a wait in vain."""

from __future__ import annotations

import time

import pytest

from lamina.errors import DeadlineExceeded, Unavailable
from lamina.lazy import refusals
from lamina.lazy.refusals import Refusals, Vain

ERRORS: list[Vain] = [Unavailable("fetch", "it", hint="try later"), DeadlineExceeded("fetch", "it")]


@pytest.mark.parametrize("error", ERRORS)
def test_nothing_is_asked_of_a_source_that_gave_nothing(error: Vain) -> None:
    refused = Refusals()
    refused.note([1], error, time.monotonic() - 5)
    with pytest.raises(type(error)) as caught:
        refused.check(range(7, 8))
    assert caught.value is not error
    assert str(caught.value) == str(error)
    refused.clear()
    refused.check(range(1, 2))


def test_of_a_source_that_gave_others_only_these_units_are_refused() -> None:
    refused, began = Refusals(), time.monotonic() - 5
    refused.clear()
    refused.note([1, 3], ERRORS[0], began)
    refused.check(range(2, 3))
    with pytest.raises(Unavailable):
        refused.check(range(2, 4))


def test_who_has_hardly_waited_may_ask_again() -> None:
    refused = Refusals()
    refused.note([1], ERRORS[0], time.monotonic() - 0.01)
    refused.check(range(1, 2))


def test_it_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "LONGEST", 0.01)
    refused = Refusals()
    refused.note([1], ERRORS[0], time.monotonic() - 5)
    time.sleep(0.02)
    refused.check(range(1, 2))

"""How long is waited: back-off, Retry-After, and what does not count as waiting."""

from __future__ import annotations

import socket
import threading
import time
from email.utils import formatdate

import pytest

from lamina.core.cancel import within
from lamina.errors import Cancelled, NotFound, Unavailable
from lamina.images.registry.cancel import Cancel
from lamina.images.registry.connections import Connections
from lamina.images.registry.failure import Failure
from lamina.images.registry.hosts import Endpoint
from lamina.images.registry.proxies import Proxies
from lamina.images.registry.retry import RetryPolicy, parse_retry_after, retrying


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        (" 120 ", 120.0),
        ("-5", None),
        ("1.5", None),
        ("", None),
        ("tomorrow", None),
        ("9" * 500, 999999999.0),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0),
        ("Fri, 31 Dec 99999 23:59:59 GMT", None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value) == seconds


def test_retry_after_a_date() -> None:
    seconds = parse_retry_after(formatdate(time.time() + 100, usegmt=True))
    assert seconds is not None
    assert 95 < seconds <= 100


def test_delays_double_up_to_the_longest() -> None:
    policy = RetryPolicy(first_delay=1.0, longest_delay=5.0)
    for failures, ceiling in [(1, 1), (2, 2), (3, 4), (4, 5), (40, 5)]:
        delays = [policy.delay(failures, None) for _ in range(200)]
        assert ceiling / 4 <= min(delays)
        assert max(delays) <= ceiling
        assert len(set(delays)) > 100


def test_a_request_to_wait_is_capped() -> None:
    policy = RetryPolicy(longest_delay=5.0)
    assert policy.delay(1, 3.0) == 3.0
    assert policy.delay(1, 3600.0) == 5.0


class Attempts:
    """Fails `failures` times, then gives the number of tries."""

    def __init__(self, failures: int, *, transient: bool = True) -> None:
        self.failures = failures
        self.transient = transient
        self.tries = 0

    def __call__(self) -> int:
        self.tries += 1
        if self.tries > self.failures:
            return self.tries
        raise Failure(Unavailable("try"), transient=self.transient)


def no_wait(seconds: float, cancel: Cancel) -> None:
    """Stand for any wait."""


def test_retrying() -> None:
    policy = RetryPolicy(wait=no_wait)
    assert retrying(Attempts(2), policy, 3, Cancel(), "try") == 3
    with pytest.raises(Failure) as caught:
        retrying(Attempts(3), policy, 3, Cancel(), "try")
    assert caught.value.error.hint == "gave up after 3 tries"
    lasting = Attempts(1, transient=False)
    with pytest.raises(Failure):
        retrying(lasting, policy, 3, Cancel(), "try")
    assert lasting.tries == 1


def test_no_try_that_is_too_late_is_waited_for() -> None:
    waits: list[float] = []

    def refused() -> int:
        raise Failure(Unavailable("try"), transient=True, retry_after=50.0)

    policy = RetryPolicy(wait=lambda seconds, _: waits.append(seconds))
    with within(60), pytest.raises(Failure):
        retrying(refused, policy, 3, Cancel(), "try")
    assert waits == [50.0, 50.0]
    waits.clear()
    with within(30), pytest.raises(Failure) as caught:
        retrying(refused, policy, 3, Cancel(), "try")
    assert waits == []
    assert caught.value.error.hint == "gave up after 1 try"


def test_no_host_is_waited_for_longer_than_whoever_asks_waits() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        endpoint = Endpoint(host, "http", host)
        connections = Connections(Proxies(), 3600.0, 1)
        for seconds in (0.1, -1.0):
            with within(seconds), pytest.raises(Failure, match="timed out"):
                connections.send(endpoint, "HEAD", endpoint.url, {})
        connections.close()


def test_other_errors_pass() -> None:
    def attempt() -> int:
        raise NotFound("image")

    with pytest.raises(NotFound):
        retrying(attempt, RetryPolicy(wait=no_wait), 3, Cancel(), "try")


def test_a_wait_ends_when_cancelled() -> None:
    cancel = Cancel()
    timer = threading.Timer(0.1, cancel.set)
    timer.start()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        retrying(Attempts(9), RetryPolicy(first_delay=100.0, longest_delay=100.0), 9, cancel, "try")
    assert time.monotonic() - began < 5
    timer.join()


def test_interrupts_are_called_once_set_and_forgotten_afterwards() -> None:
    cancel = Cancel()
    called: list[str] = []
    with cancel.interrupting(lambda: called.append("done")):
        pass
    with cancel.interrupting(lambda: called.append("during")):
        cancel.set()
    with cancel.interrupting(lambda: called.append("after")):
        pass
    assert called == ["during", "after"]

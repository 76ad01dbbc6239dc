"""How one request can fail, before it is decided whether to try again or to ask another host."""

from __future__ import annotations

from collections.abc import Sequence

from lamina.errors import LaminaError


class Failure(Exception):
    """One host could not give what was asked for.

    Attributes:
        error: what the caller is told in the end.
        transient: trying the same host again may help.
        retry_after: seconds that the host asks to be left alone, or None.
    """

    def __init__(
        self, error: LaminaError, *, transient: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(error)
        self.error = error
        self.transient = transient
        self.retry_after = retry_after


def combined(failures: Sequence[Failure]) -> LaminaError:
    """Return the last host's error, which tells of those before it too.

    The last host is the registry itself, those before it are its mirrors.
    """
    *before, last = (failure.error for failure in failures)
    if before:
        for error in before:
            error.hint = ""
        texts = "; ".join(dict.fromkeys(map(str, before)))
        last.hint = f"{last.hint}; before that: {texts}".removeprefix("; ")
    return last

"""Tests for snapshotters: the contract that every driver keeps, for pytest.

It is what Lamina's own drivers are tested with; see docs/writing-a-driver.md. It needs pytest:
`pip install lamina[testing]`.
"""

import pytest

# Before they are imported, so that a failed assert says what it compared.
pytest.register_assert_rewrite("lamina.testing.checks", "lamina.testing.contract")

from lamina.testing.contract import SnapshotterContract  # noqa: E402  # see above

__all__ = ["SnapshotterContract"]

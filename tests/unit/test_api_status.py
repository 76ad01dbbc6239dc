"""Errors on their way over the wire."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina import errors
from lamina.api.status import MESSAGE_LIMIT, decode_message, encode_message, from_status, to_status
from lamina.errors import Internal, LaminaError, NotFound, SnapshotterSkipped

ROOTS = LaminaError.__subclasses__()


@pytest.mark.parametrize("kind", ROOTS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("hint", ["", "try; that: else"])
def test_every_class_survives(kind: type[LaminaError], hint: str) -> None:
    error = kind("remove snapshot", 'k8s.io/1/extract "x"', hint=hint)
    again = from_status(*to_status(error))
    assert type(again) is kind
    assert to_status(again) == to_status(error)
    assert str(again).count(kind.class_text) == 1
    assert str(again).endswith(f": {kind.class_text}")
    assert hint in str(again)


def test_every_error_has_a_code_that_grpc_knows() -> None:
    for name in dir(errors):
        kind = getattr(errors, name)
        if isinstance(kind, type) and issubclass(kind, LaminaError):
            assert 1 <= kind.grpc_code <= 16


def test_subclass_arrives_as_its_root_with_the_same_words() -> None:
    error = SnapshotterSkipped("zfs", reason="no zfs here", fix="install it")
    again = from_status(*to_status(error))
    assert type(again) is errors.FailedPrecondition
    assert "no zfs here" in str(again)


def test_texts_of_a_containerd() -> None:
    error = from_status(5, "snapshot abc does not exist: not found")
    assert isinstance(error, NotFound)
    assert str(error) == "snapshot abc does not exist: not found"


@pytest.mark.parametrize("code", [2, 17, 9999])
def test_codes_that_mean_nothing(code: int) -> None:
    assert type(from_status(code, "odd")) is LaminaError


def test_what_is_not_of_the_tree_tells_no_details() -> None:
    code, text = to_status(ZeroDivisionError("secret"))
    assert code == Internal.grpc_code
    assert "secret" not in text


@given(st.text(max_size=800))
def test_messages_round_trip(text: str) -> None:
    encoded = encode_message(text)
    assert all(0x20 <= byte <= 0x7E for byte in encoded)
    assert decode_message(encoded.decode()) == text.encode(errors="replace").decode()
    assert unquote(encoded.decode()) == text.encode(errors="replace").decode()


@given(st.text(min_size=1000).map(lambda text: text * 9))
def test_long_messages_are_cut_between_characters(text: str) -> None:
    encoded = encode_message(text)
    assert len(encoded) <= MESSAGE_LIMIT
    shown = text.encode(errors="replace").decode()
    assert shown.startswith(decode_message(encoded.decode()).rstrip("\ufffd"))


@pytest.mark.parametrize("encoded", ["50%", "%zz", "a%2", "%"])
def test_wrong_encodings_stay_as_they_are(encoded: str) -> None:
    assert decode_message(encoded) == encoded

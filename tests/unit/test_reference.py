"""References: docker's rules for short names, the grammar's edges, what comes back out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.errors import InvalidArgument
from lamina.images.reference import Reference, parse

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
        ("library/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("user/app", "docker.io/user/app:latest", "user/app:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("index.docker.io/user/app:2", "docker.io/user/app:2", "user/app:2"),
        ("library/a/b:1", "docker.io/library/a/b:1", "library/a/b:1"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}", f"busybox@{DIGEST}"),
        ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest", "localhost:5000/app:latest"),
        ("Host/app", "Host/app:latest", "Host/app:latest"),
        ("[::1]:5000/app:v1", "[::1]:5000/app:v1", "[::1]:5000/app:v1"),
        ("ghcr.io/a/b/c:x_y.z-1", "ghcr.io/a/b/c:x_y.z-1", "ghcr.io/a/b/c:x_y.z-1"),
        ("a__b/c---d:T", "docker.io/a__b/c---d:T", "a__b/c---d:T"),
    ],
)
def test_names_are_normalised_by_dockers_rules(text: str, full: str, familiar: str) -> None:
    reference = parse(text)
    assert str(reference) == full
    assert reference.familiar() == familiar
    assert parse(reference.familiar()) == reference


def test_parts() -> None:
    reference = parse(f"registry.example:5000/team/app:v1@{DIGEST}")
    assert reference.host == "registry.example:5000"
    assert reference.repository == "team/app"
    assert reference.tag == "v1"
    assert reference.digest == DIGEST
    assert reference.object == DIGEST
    assert reference.name == "registry.example:5000/team/app"
    assert str(reference) == f"registry.example:5000/team/app:v1@{DIGEST}"


def test_object_is_the_tag_without_a_digest() -> None:
    assert parse("app:v1").object == "v1"


def test_with_digest_drops_the_tag() -> None:
    reference = parse("app:v1")
    digest = parse(f"app@{DIGEST}").digest
    assert digest is not None
    assert str(reference.with_digest(digest)) == f"docker.io/library/app@{DIGEST}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "write [HOST/]"),
        (":latest", "write [HOST/]"),
        ("Busybox", "lower case: library/busybox"),
        ("ghcr.io/User/app", "lower case: user/app"),
        ("app:", "a tag has 1 to 128"),
        ("app:.x", "a tag has 1 to 128"),
        ("app:" + "x" * 129, "a tag has 1 to 128"),
        ("app:a b", "a tag has 1 to 128"),
        (HEX, "image id"),
        ("a" * 256 + ":x", "longer than 255"),
        ("app@sha256:12", "64 lower-case hex"),
        ("app@" + DIGEST.upper(), "64 lower-case hex"),
        ("app@", "64 lower-case hex"),
        (f"app@{DIGEST}@{DIGEST}", "64 lower-case hex"),
        ("ghcr.io/", "write [HOST/]"),
        ("ghcr.io//app", "write [HOST/]"),
        ("ghcr.io/../app", "write [HOST/]"),
        ("-bad.io/app", "not a host name"),
        ("a.io:port/app", "not a host name"),
        ("https://a.io/app", "not a host name"),
        ("app\n", "write [HOST/]"),
        ("app:v1\n", "a tag has 1 to 128"),
        ("äpp", "write [HOST/]"),
        ("a/b_/c", "write [HOST/]"),
    ],
)
def test_what_breaks_the_grammar_is_refused_with_a_reason(text: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match="parse reference") as caught:
        parse(text)
    assert said in str(caught.value)


_PART = st.from_regex(r"[a-z0-9]+([._-][a-z0-9]+)?", fullmatch=True)


@given(
    host=st.sampled_from(["docker.io", "localhost", "a.example", "b:5000", "[fe80::1]:80"]),
    repository=st.lists(_PART, min_size=2, max_size=4).map("/".join),
    tag=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    digest=st.sampled_from(["", "@" + DIGEST]),
)
def test_full_references_come_back_letter_by_letter(
    host: str, repository: str, tag: str, digest: str
) -> None:
    text = f"{host}/{repository}:{tag}{digest}"
    reference = parse(text)
    assert str(reference) == text
    assert isinstance(reference, Reference)
    assert parse(reference.familiar()) == reference


@given(st.text(max_size=60))
def test_any_text_parses_or_is_an_invalid_argument(text: str) -> None:
    try:
        reference = parse(text)
    except InvalidArgument:
        return
    assert parse(str(reference)) == reference

"""The chain of credentials, with real helper programs."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from lamina.errors import ConfigError, Unauthenticated
from lamina.images.registry.credentials import Credential, CredentialStore
from lamina.images.registry.hosts import Endpoint

HUB = Endpoint("docker.io", "https", "registry-1.docker.io")
HUB_KEY = "https://index.docker.io/v1/"
OTHER = Endpoint("a.example:5000", "https", "a.example:5000")
MIRROR = Endpoint("docker.io", "https", "mirror.example", mirror=True)


def auth(pair: str) -> dict[str, str]:
    return {"auth": base64.b64encode(pair.encode()).decode()}


def store(directory: Path, config: object, user: Credential | None = None) -> CredentialStore:
    path = directory / "config.json"
    path.write_text(json.dumps(config))
    return CredentialStore(user=user, docker_config=path)


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A helper named `test` that answers with what `answers/KEY` has, slashes in KEY as _."""
    answers = tmp_path / "answers"
    answers.mkdir()
    program = tmp_path / "bin" / "docker-credential-test"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n"
        'test "$1" = get || exit 3\n'
        "key=$(cat | tr / _)\n"
        f'echo "$key" >> {tmp_path}/asked\n'
        f'cat "{answers}/$key" 2>/dev/null && exit 0\n'
        "echo credentials not found in native keychain\n"
        "exit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return answers


def test_nobody() -> None:
    assert CredentialStore().find(OTHER) is None


def test_a_missing_file_is_an_empty_one(tmp_path: Path) -> None:
    assert CredentialStore(docker_config=tmp_path / "none").find(OTHER) is None


def test_the_user_comes_first_but_not_at_mirrors(tmp_path: Path) -> None:
    user = Credential("me", "mine")
    chain = store(tmp_path, {"auths": {"mirror.example": auth("them:theirs")}}, user)
    assert chain.find(HUB) == user
    assert chain.find(MIRROR) == Credential("them", "theirs")


@pytest.mark.parametrize("key", [HUB_KEY, "docker.io", "index.docker.io", "registry-1.docker.io"])
def test_docker_hub_has_several_names(tmp_path: Path, key: str) -> None:
    chain = store(tmp_path, {"auths": {key: auth("user:secret:with:colons")}})
    assert chain.find(HUB) == Credential("user", "secret:with:colons")
    assert chain.find(MIRROR) is None
    assert chain.find(OTHER) is None


@pytest.mark.parametrize(
    "key", ["a.example:5000", "https://a.example:5000", "http://a.example:5000/v2/"]
)
def test_a_key_may_be_a_url(tmp_path: Path, key: str) -> None:
    chain = store(tmp_path, {"auths": {key: auth("u:p")}})
    assert chain.find(OTHER) == Credential("u", "p")


def test_an_endpoint_is_known_by_the_registrys_name_too(tmp_path: Path) -> None:
    server = Endpoint("a.example", "https", "cdn.example")
    chain = store(tmp_path, {"auths": {"a.example": auth("u:p")}})
    assert chain.find(server) == Credential("u", "p")


def test_identity_tokens_and_plain_fields(tmp_path: Path) -> None:
    entry = {**auth("u:"), "identitytoken": "refresh"}
    assert store(tmp_path, {"auths": {"a.example:5000": entry}}).find(OTHER) == Credential(
        "u", identity_token="refresh"
    )
    entry = {"username": "u", "password": "p"}
    assert store(tmp_path, {"auths": {"a.example:5000": entry}}).find(OTHER) == Credential("u", "p")


def test_an_empty_entry_is_none(tmp_path: Path) -> None:
    assert store(tmp_path, {"auths": {"a.example:5000": {}}}).find(OTHER) is None


@pytest.mark.parametrize(
    "config", [[], {"auths": []}, {"auths": {"a.example:5000": {"auth": 1}}}, {"credHelpers": ""}]
)
def test_a_wrong_file_is_named(tmp_path: Path, config: object) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        store(tmp_path, config).find(OTHER)


@pytest.mark.parametrize("text", ["!!!", "bm9jb2xvbg==", "/w=="])
def test_a_wrong_auth_is_told_without_it(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="not the base64 of USER:PASSWORD") as caught:
        store(tmp_path, {"auths": {"a.example:5000": {"auth": text}}}).find(OTHER)
    assert text not in str(caught.value).replace(str(tmp_path), "")


def test_the_file_is_read_each_time(tmp_path: Path) -> None:
    chain = store(tmp_path, {})
    assert chain.find(OTHER) is None
    store(tmp_path, {"auths": {"a.example:5000": auth("u:p")}})
    assert chain.find(OTHER) == Credential("u", "p")


def test_a_store_for_all_hosts(tmp_path: Path, helper: Path) -> None:
    (helper / "a.example:5000").write_text('{"ServerURL":"x","Username":"u","Secret":"p"}')
    (helper / HUB_KEY.replace("/", "_")).write_text('{"Username":"<token>","Secret":"refresh"}')
    chain = store(tmp_path, {"credsStore": "test"})
    assert chain.find(OTHER) == Credential("u", "p")
    assert chain.find(HUB) == Credential("", identity_token="refresh")
    assert (tmp_path / "asked").read_text().split() == [
        "a.example:5000",
        HUB_KEY.replace("/", "_"),
    ]


def test_a_helper_for_one_host(tmp_path: Path, helper: Path) -> None:
    (helper / "a.example:5000").write_text('{"Username":"u","Secret":"p"}')
    chain = store(tmp_path, {"credHelpers": {"a.example:5000": "test"}, "credsStore": "absent"})
    assert chain.find(OTHER) == Credential("u", "p")


def test_a_helper_without_an_answer_leaves_it_to_the_file(tmp_path: Path, helper: Path) -> None:
    chain = store(tmp_path, {"credsStore": "test", "auths": {"a.example:5000": auth("u:p")}})
    assert chain.find(OTHER) == Credential("u", "p")
    assert chain.find(HUB) is None


def test_a_missing_helper_is_an_error(tmp_path: Path, helper: Path) -> None:
    chain = store(tmp_path, {"credsStore": "absent"})
    with pytest.raises(Unauthenticated, match="docker-credential-absent is not installed"):
        chain.find(OTHER)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo the keyring is locked; exit 1", "the keyring is locked"),
        ("exit 1", "failed without a word"),
        ("echo not json", "its answer is no credential"),
        ("kill -9 $$", "killed by signal 9"),
    ],
)
def test_a_broken_helper_is_an_error(tmp_path: Path, helper: Path, script: str, said: str) -> None:
    program = tmp_path / "bin" / "docker-credential-test"
    program.write_text(f"#!/bin/sh\n{script}\n")
    chain = store(tmp_path, {"credsStore": "test"})
    with pytest.raises(Unauthenticated, match=said):
        chain.find(OTHER)


def test_no_secret_is_shown() -> None:
    assert "hush" not in repr(Credential("u", "hush", "hush"))

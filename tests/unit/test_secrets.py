"""The secrets that `boxoffice up` keeps in its data folder: made once, for their owner's eyes."""

import stat
from pathlib import Path

import pytest

from common.rights import everybody
from common.settings import Settings, load
from services.cli.embedded import SECRETS, own_servers, passwords, secret, webhook_secret, with_login


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_secret_is_made_once_and_for_its_owners_eyes(tmp_path: Path) -> None:
    made = iter(["one\n", "two\n"])
    assert [secret(tmp_path, "key", lambda: next(made)) for _ in range(2)] == ["one", "one"]
    assert mode(tmp_path / SECRETS) == 0o700
    assert mode(tmp_path / SECRETS / "key") == 0o600
    assert secret(tmp_path, "other") != secret(tmp_path, "another")
    assert len(secret(tmp_path, "other")) >= 40


def test_one_that_could_not_be_made_is_made_the_next_time(tmp_path: Path) -> None:
    def fail() -> str:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        secret(tmp_path, "key", fail)
    assert secret(tmp_path, "key", lambda: "made") == "made"


def test_the_secret_of_webhooks_is_taken_over_from_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "webhook.secret").write_text("as it was")
    assert [webhook_secret(tmp_path) for _ in range(2)] == ["as it was"] * 2
    assert not (tmp_path / "webhook.secret").exists()


def test_every_user_has_a_password_of_its_own_on_each_server(tmp_path: Path) -> None:
    on_nats, in_postgres = passwords(tmp_path, "nats"), passwords(tmp_path, "postgres")
    assert on_nats.keys() == in_postgres.keys() == everybody().keys()
    assert len({*on_nats.values(), *in_postgres.values()}) == 2 * len(everybody())
    assert passwords(tmp_path, "nats") == on_nats


@pytest.mark.parametrize("suffix", ["", "_FILE"])
def test_a_server_that_the_environment_names_is_not_started(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "url").write_text("nats://there")
    value = str(tmp_path / "url") if suffix else "nats://there"
    assert own_servers(tmp_path, {f"BOXOFFICE_NATS_URL{suffix}": value}).keys() == {"database_url"}


def test_an_address_gets_another_user() -> None:
    assert with_login("nats://127.0.0.1:4222", "orders", "a/b@c") == "nats://orders:a%2Fb%40c@127.0.0.1:4222"
    database_url = with_login("postgresql://postgres@/box?host=%2Ftmp&port=1", "sam", "x")
    assert database_url == "postgresql://sam:x@/box?host=%2Ftmp&port=1"
    assert load(Settings, {"BOXOFFICE_DATABASE_URL": database_url}).database_url == database_url

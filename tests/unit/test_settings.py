"""What the environment may say, and what is answered when it says nonsense."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import pytest
from msgspec import Meta

from common.settings import BadSetting, Settings, addresses, load, without_password
from services.notification.settings import NotificationSettings


class OwnSettings(Settings, frozen=True, kw_only=True):
    """A service's own variables."""

    hold_seconds: Annotated[int, Meta(ge=1)] = 900


def test_without_variables_the_defaults_hold() -> None:
    assert load(Settings, {}) == Settings()
    assert load(OwnSettings, {"HOLD_SECONDS": "1", "hold_seconds": "2"}) == OwnSettings()


def test_variables_are_read_as_their_types() -> None:
    environment = {
        "BOXOFFICE_NATS_URL": "nats://elsewhere:1",
        "BOXOFFICE_PORT": "9000",
        "BOXOFFICE_REPLICAS": "3",
        "BOXOFFICE_AUTH": "dev",
        "BOXOFFICE_HOLD_SECONDS": "30",
    }
    settings = load(OwnSettings, environment)
    assert (settings.nats_url, settings.port, settings.replicas) == ("nats://elsewhere:1", 9000, 3)
    assert (settings.auth, settings.hold_seconds) == ("dev", 30)


def test_variables_of_others_are_ignored() -> None:
    assert load(Settings, {"BOXOFFICE_HOLD_SECONDS": "soon", "PORT": "nowhere"}) == Settings()


def test_operators_are_named_with_commas_between_them_and_blanks_where_one_likes() -> None:
    assert load(Settings, {"BOXOFFICE_OPERATORS": " operator, ada ,eve"}).operator_names == {"operator", "ada", "eve"}
    assert load(Settings, {}).operator_names == {"operator"}
    assert not load(Settings, {"BOXOFFICE_OPERATORS": ""}).operator_names


def test_a_database_url_is_one_of_postgres() -> None:
    for url in ("postgresql://sam@db/box", "postgres://sam@db/box"):
        assert load(Settings, {"BOXOFFICE_DATABASE_URL": url}).database_url == url
    with pytest.raises(BadSetting) as refused:
        load(Settings, {"BOXOFFICE_DATABASE_URL": "mysql://sam:secret@db/box"})
    assert str(refused.value) == (
        "BOXOFFICE_DATABASE_URL='mysql://sam:***@db/box': Expected an address like postgresql://user@host:5432/database"
    )


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"BOXOFFICE_PORT": "http"}, ("BOXOFFICE_PORT", "'http'", "whole number")),
        ({"BOXOFFICE_PORT": ""}, ("BOXOFFICE_PORT", "''", "whole number")),
        ({"BOXOFFICE_PORT": "0"}, ("BOXOFFICE_PORT", "'0'", "1")),
        ({"BOXOFFICE_PORT": "65536"}, ("BOXOFFICE_PORT", "'65536'", "65535")),
        ({"BOXOFFICE_REPLICAS": "2.5"}, ("BOXOFFICE_REPLICAS", "'2.5'", "whole number")),
        ({"BOXOFFICE_REPLICAS": "7"}, ("BOXOFFICE_REPLICAS", "'7'", "5")),
        ({"BOXOFFICE_AUTH": "none"}, ("BOXOFFICE_AUTH", "'none'")),
        ({"BOXOFFICE_LOG_LEVEL": "loud"}, ("BOXOFFICE_LOG_LEVEL", "'loud'")),
        ({"BOXOFFICE_HOLD_SECONDS": "-1", "BOXOFFICE_PORT": "80"}, ("BOXOFFICE_HOLD_SECONDS", "'-1'", "1")),
    ],
)
def test_nonsense_is_told_with_its_variable_its_value_and_what_is_allowed(
    environment: Mapping[str, str], told: tuple[str, ...]
) -> None:
    with pytest.raises(BadSetting) as refusal:
        load(OwnSettings, environment)
    assert all(part in str(refusal.value) for part in told), str(refusal.value)


def test_a_service_has_its_own_before_what_is_for_all() -> None:
    environment = {"BOXOFFICE_NATS_URL": "nats://all", "BOXOFFICE_ORDERS_NATS_URL": "nats://orders:secret@one"}
    assert load(Settings, environment, of="orders").nats_url == "nats://orders:secret@one"
    assert load(Settings, environment, of="tickets").nats_url == "nats://all"
    assert load(Settings, environment).nats_url == "nats://all"


def test_a_value_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("nats://orders:secret@here \n\n")
    for variable in ("BOXOFFICE_NATS_URL_FILE", "BOXOFFICE_ORDERS_NATS_URL_FILE"):
        environment = {variable: str(file)}
        assert (
            load(Settings, environment, of="orders").nats_url == "nats://orders:secret@here \n"
        )  # but for one newline
    environment["BOXOFFICE_NATS_URL"] = "nats://all"
    assert load(Settings, environment, of="orders").nats_url.startswith("nats://orders")


def test_a_file_that_cannot_be_read_is_told_with_its_variable(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, why in (("missing", "No such file"), ("", "Is a directory"), ("binary", "not text")):
        path = str(tmp_path / name)
        with pytest.raises(BadSetting) as refused:
            load(NotificationSettings, {"BOXOFFICE_WEBHOOK_SECRET_FILE": path})
        assert all(part in str(refused.value) for part in ("BOXOFFICE_WEBHOOK_SECRET_FILE", path, why))


@pytest.mark.parametrize("of", ["", "ORDERS_"])
def test_a_variable_and_its_file_are_not_both_believed(of: str, tmp_path: Path) -> None:
    variable = f"BOXOFFICE_{of}NATS_URL"
    with pytest.raises(BadSetting, match=f"^{variable} and {variable}_FILE are both set"):
        load(Settings, {variable: "nats://a", f"{variable}_FILE": str(tmp_path / "missing")}, of="orders")


def test_no_secret_is_shown(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("hunter2")
    for environment in (
        {"BOXOFFICE_WEBHOOK_SECRET": "hunter2"},
        {"BOXOFFICE_WEBHOOK_SECRET_FILE": str(file)},
        {"BOXOFFICE_NOTIFICATION_WEBHOOK_SECRET_FILE": str(file)},
        {"BOXOFFICE_DATABASE_URL": "mysql://sam:hunt/er2@x:hunter2@db"},
        {"BOXOFFICE_DATABASE_URL": "mysql://sam@db/box?password=hunter2&x=y"},
        {"BOXOFFICE_DATABASE_URL_FILE": str(file)},
    ):
        with pytest.raises(BadSetting) as refused:
            load(NotificationSettings, environment, of="notification")
        assert next(iter(environment)) in str(refused.value)
        assert "hunter2" not in str(refused.value)


def test_of_several_addresses_no_password_is_shown() -> None:
    several = "nats://orders:se,cret@n0:4222,nats://orders:se,cret@n1:4222"
    assert addresses(several) == ["nats://orders:se,cret@n0:4222", "nats://orders:se,cret@n1:4222"]
    assert without_password(several) == "nats://orders:***@n0:4222,nats://orders:***@n1:4222"

"""What the environment may say, and what is answered when it says nonsense."""

from collections.abc import Mapping
from typing import Annotated

import pytest
from msgspec import Meta

from common.settings import BadSetting, Settings, load


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

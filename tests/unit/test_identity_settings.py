"""What the identity service refuses to start with, and where it sends nobody."""

import json
from typing import Any

import pytest

from common.errors import Invalid
from common.settings import BadSetting, load
from services.identity.logins import DevLogins, own_path
from services.identity.settings import IdentitySettings

HIDDEN = "hunter2"
PROVIDER = {"name": "shop", "issuer": "https://id.example", "client_id": "boxoffice", "client_secret": HIDDEN * 5}
LONG = HIDDEN * 5

WRONG: dict[str, dict[str, str]] = {
    "a short secret": {"BOXOFFICE_ENCRYPTION_SECRET": HIDDEN},
    "a secret in other letters": {"BOXOFFICE_ENCRYPTION_SECRET": LONG + "ä"},
    "a secret with a space": {"BOXOFFICE_ENCRYPTION_SECRET": LONG + " "},
    "a short secret from before": {"BOXOFFICE_ENCRYPTION_SECRET_BEFORE": HIDDEN},
    "providers that are no list": {"BOXOFFICE_OIDC_PROVIDERS": json.dumps(PROVIDER)},
    "providers that are no JSON": {"BOXOFFICE_OIDC_PROVIDERS": HIDDEN},
    "a provider without a secret": {"BOXOFFICE_OIDC_PROVIDERS": json.dumps([{**PROVIDER, "client_secret": None}])},
    "a provider without a name": {"BOXOFFICE_OIDC_PROVIDERS": json.dumps([{**PROVIDER, "name": 1}])},
    "two providers of one name": {"BOXOFFICE_OIDC_PROVIDERS": json.dumps([PROVIDER, PROVIDER])},
    "a provider of the name of the first": {
        "BOXOFFICE_OIDC_PROVIDERS": json.dumps([{**PROVIDER, "name": "google"}]),
        "BOXOFFICE_OIDC_CLIENT_ID": "boxoffice",
        "BOXOFFICE_OIDC_CLIENT_SECRET": LONG,
    },
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_setting_is_told_by_name_and_not_shown(case: str) -> None:
    with pytest.raises(BadSetting) as refused:
        _ = load(IdentitySettings, WRONG[case], of="identity").providers
    assert str(refused.value).startswith(next(iter(WRONG[case])))
    assert HIDDEN not in str(refused.value)


HALVES: dict[str, tuple[dict[str, str], str]] = {
    "an id without a secret": ({"CLIENT_ID": "boxoffice"}, "BOXOFFICE_OIDC_CLIENT_SECRET"),
    "a secret without an id": ({"CLIENT_SECRET": LONG}, "BOXOFFICE_OIDC_CLIENT_ID"),
    "an empty id": ({"CLIENT_ID": "", "CLIENT_SECRET": LONG}, "BOXOFFICE_OIDC_CLIENT_ID"),
    "a secret beside a list": (
        {"CLIENT_SECRET": LONG, "PROVIDERS": json.dumps([PROVIDER])},
        "BOXOFFICE_OIDC_CLIENT_ID",
    ),
    "an issuer alone": (
        {"ISSUER": "https://id.example"},
        "BOXOFFICE_OIDC_CLIENT_ID and BOXOFFICE_OIDC_CLIENT_SECRET",
    ),
    "a name alone": ({"NAME": "shop"}, "BOXOFFICE_OIDC_CLIENT_ID and BOXOFFICE_OIDC_CLIENT_SECRET"),
    "scopes alone": ({"SCOPES": "openid"}, "BOXOFFICE_OIDC_CLIENT_ID and BOXOFFICE_OIDC_CLIENT_SECRET"),
}


@pytest.mark.parametrize("case", HALVES)
def test_of_half_a_provider_it_is_told_what_is_missing(case: str) -> None:
    given, missing = HALVES[case]
    settings = load(IdentitySettings, {f"BOXOFFICE_OIDC_{name}": value for name, value in given.items()})
    with pytest.raises(BadSetting) as refused:
        _ = settings.providers
    assert str(refused.value).startswith(f"{missing}: Required")
    assert HIDDEN not in str(refused.value)


def test_where_nothing_is_said_of_a_provider_there_is_none() -> None:
    assert load(IdentitySettings, {}).providers == []
    assert load(IdentitySettings, {"BOXOFFICE_OIDC_CLIENT_ID": "", "BOXOFFICE_OIDC_CLIENT_SECRET": ""}).providers == []


def test_providers_are_those_of_the_list_behind_the_first() -> None:
    environment: dict[str, str] = {
        "BOXOFFICE_OIDC_PROVIDERS": json.dumps([PROVIDER]),
        "BOXOFFICE_OIDC_CLIENT_ID": "boxoffice",
        "BOXOFFICE_OIDC_CLIENT_SECRET": LONG,
    }
    assert [each.name for each in load(IdentitySettings, environment).providers] == ["google", "shop"]


def test_nobody_is_let_in_by_their_word_where_that_is_not_for_development() -> None:
    logins: Any = None  # which it never comes to
    with pytest.raises(BadSetting, match=r"^BOXOFFICE_AUTH='on'"):
        DevLogins(logins, IdentitySettings(auth="on"))
    DevLogins(logins, IdentitySettings(auth="dev"))


OURS = ["/", "/login", "/tickets/1?page=2&next=https://x.example#top", "/a//b", "/%2F/evil.example", "/@evil.example"]
NOT_OURS = [
    *("", "login", "https://evil.example", "HTTPS://evil.example", "https:evil.example", "javascript:alert(1)"),
    *("//evil.example", "///evil.example", "/\\evil.example", "\\\\evil.example", "\\/evil.example"),
    *(" //evil.example", "/\t/evil.example", "\t//evil.example", "/\n/evil.example", "/a\r\nSet-Cookie: a=b"),
    *("//[", "http://[", "/\x00", "/\u2028", "//evil.example:x", "data:text/html,x", "/\u00e4"),
]


@pytest.mark.parametrize("path", OURS)
def test_whoever_logged_in_goes_on_where_they_wanted(path: str) -> None:
    assert own_path(path) == path


@pytest.mark.parametrize("path", NOT_OURS)
def test_nobody_is_sent_elsewhere(path: str) -> None:
    with pytest.raises(Invalid, match="Expected a path of this system"):
        own_path(path)

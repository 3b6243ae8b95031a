"""Logging in from end to end, with somebody else's provider of OpenID Connect."""

from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest

from common.errors import Invalid, Unauthenticated, Unavailable
from services.identity.oauth import Callback, Identity, LoggedIn, LoginOptions, OAuthService
from services.identity.oidc import OidcProvider, ProviderSettings
from tests.oidc_server import OidcServer, oidc_server

HERE = "http://127.0.0.1:8080/api/auth/callback"


@pytest.fixture
async def server() -> AsyncIterator[OidcServer]:
    async with oidc_server(HERE) as server:
        yield server


@pytest.fixture
def settings(server: OidcServer) -> ProviderSettings:
    return settings_for(server)


def settings_for(server: OidcServer) -> ProviderSettings:
    return ProviderSettings(
        name="The test provider",
        issuer=server.issuer,
        client_id=server.client_id,
        client_secret=server.client_secret,
        scopes=("openid", "email", "profile", "offline_access"),
    )


@pytest.fixture
async def provider(settings: ProviderSettings) -> AsyncIterator[OidcProvider]:
    async with OidcProvider(settings) as provider:
        yield provider


def callback_of(url: str) -> Callback:
    """What our own callback is asked."""
    assert url.startswith(f"{HERE}?")
    return msgspec.convert({name: value for name, (value,) in parse_qs(urlsplit(url).query).items()}, Callback)


async def come_back(service: OAuthService, server: OidcServer, user: str = "ada") -> tuple[Callback, LoginOptions]:
    """To where the browser is sent after a login there."""
    options = LoginOptions.new(HERE)
    return callback_of(await server.log_in(await service.authorization_url(options), user)), options


async def log_in(service: OAuthService, server: OidcServer, user: str = "ada") -> LoggedIn:
    callback, options = await come_back(service, server, user)
    return await service.exchange_code(callback, options)


async def test_log_in_refresh_and_revoke(server: OidcServer, provider: OidcProvider) -> None:
    service: OAuthService = provider
    logged_in = await log_in(service, server)
    ada = logged_in.identity
    assert ada == Identity(server.issuer, ada.subject, "ada@example.org", email_verified=True, name="Ada Lovelace")
    assert logged_in.refresh_token is not None

    refreshed = await service.refresh(logged_in.refresh_token, ada.subject)
    assert refreshed.refresh_token != logged_in.refresh_token
    assert refreshed.identity is not None
    assert refreshed.identity.subject == ada.subject

    assert await service.revoke(refreshed.refresh_token)
    with pytest.raises(Unauthenticated, match="does not confirm that you are logged in"):
        await service.refresh(refreshed.refresh_token, ada.subject)


async def test_somebody_is_the_same_each_time_and_nobody_else(server: OidcServer, provider: OidcProvider) -> None:
    once, again, bob = [await log_in(provider, server, user) for user in ("ada", "ada", "bob")]
    assert once.identity == again.identity
    assert bob.identity.subject != once.identity.subject
    assert not bob.identity.email_verified


async def test_who_is_not_told_in_the_id_token_is_asked_for() -> None:
    async with oidc_server(HERE, thin=True) as server, OidcProvider(settings_for(server)) as provider:
        logged_in = await log_in(provider, server)
        assert (logged_in.identity.name, logged_in.identity.email) == ("Ada Lovelace", "ada@example.org")
        assert logged_in.refresh_token is not None
        refreshed = await provider.refresh(logged_in.refresh_token, logged_in.identity.subject)
        assert refreshed.identity == logged_in.identity
    assert server.asked.count("/userinfo") == 2


async def test_nothing_is_asked_before_somebody_logs_in_and_nothing_twice(
    server: OidcServer, provider: OidcProvider
) -> None:
    assert server.asked == []
    for _ in range(2):
        await log_in(provider, server)
    discovery, keys = "/.well-known/openid-configuration", "/jwks.json"
    assert sorted(server.asked) == sorted([discovery, keys, *["/authorization", "/token"] * 2])


async def test_new_keys_of_the_provider_are_found(server: OidcServer, settings: ProviderSettings) -> None:
    time = 0.0
    async with OidcProvider(settings, clock=lambda: time) as provider:
        await log_in(provider, server)
        server.rotate_keys()
        with pytest.raises(Unauthenticated, match="does not publish"):  # its keys were fetched a moment ago
            await log_in(provider, server)
        time = 61.0
        await log_in(provider, server)
        await log_in(provider, server)
    assert server.asked.count("/jwks.json") == 2


async def test_a_code_serves_once(server: OidcServer, provider: OidcProvider) -> None:
    callback, options = await come_back(provider, server)
    await provider.exchange_code(callback, options)
    with pytest.raises(Unauthenticated, match="a code serves once"):
        await provider.exchange_code(callback, options)


async def test_the_code_of_one_login_is_none_of_another(server: OidcServer, provider: OidcProvider) -> None:
    callback, _ = await come_back(provider, server)
    other = LoginOptions.new(HERE)
    with pytest.raises(Unauthenticated, match="not the login that your browser began"):
        await provider.exchange_code(callback, other)
    injected = msgspec.structs.replace(callback, state=other.state)
    with pytest.raises(Unauthenticated, match="does not confirm this login"):  # its code_verifier is another
        await provider.exchange_code(injected, other)


@pytest.mark.parametrize("changed", [{"code_verifier": "v" * 43}, {"redirect_uri": f"{HERE}/"}], ids=["PKCE", "where"])
async def test_the_provider_holds_us_to_what_the_login_began_with(
    changed: dict[str, str], server: OidcServer, provider: OidcProvider
) -> None:
    callback, options = await come_back(provider, server)
    with pytest.raises(Unauthenticated, match="does not confirm this login"):
        await provider.exchange_code(callback, msgspec.structs.replace(options, **changed))


async def test_another_nonce_is_refused_though_all_else_is_right(server: OidcServer, provider: OidcProvider) -> None:
    callback, options = await come_back(provider, server)
    with pytest.raises(Unauthenticated, match="nonce"):
        await provider.exchange_code(callback, msgspec.structs.replace(options, nonce="n" * 43))


async def test_a_refresh_token_that_was_replaced_serves_no_more(server: OidcServer, provider: OidcProvider) -> None:
    logged_in = await log_in(provider, server)
    assert logged_in.refresh_token is not None
    await provider.refresh(logged_in.refresh_token, logged_in.identity.subject)
    with pytest.raises(Unauthenticated):
        await provider.refresh(logged_in.refresh_token, logged_in.identity.subject)


async def test_who_has_no_account_any_more_is_not_refreshed(server: OidcServer, provider: OidcProvider) -> None:
    logged_in = await log_in(provider, server)
    assert logged_in.refresh_token is not None
    server.forget("ada")
    with pytest.raises(Unauthenticated):
        await provider.refresh(logged_in.refresh_token, logged_in.identity.subject)


async def test_the_token_of_one_user_does_not_refresh_another(server: OidcServer, provider: OidcProvider) -> None:
    ada, bob = await log_in(provider, server), await log_in(provider, server, "bob")
    assert ada.refresh_token is not None
    with pytest.raises(Unauthenticated, match="somebody else"):
        await provider.refresh(ada.refresh_token, bob.identity.subject)


async def test_a_wrong_secret_of_ours_is_told_to_whoever_runs_this(
    server: OidcServer, settings: ProviderSettings
) -> None:
    async with OidcProvider(msgspec.structs.replace(settings, client_secret=settings.client_id)) as provider:
        callback, options = await come_back(provider, server)
        with pytest.raises(Unavailable, match=r"client id, secret.*\(invalid_client\)"):
            await provider.exchange_code(callback, options)


async def test_a_redirect_that_is_not_registered_gets_no_code(server: OidcServer, provider: OidcProvider) -> None:
    url = await provider.authorization_url(LoginOptions.new("http://127.0.0.1:8080/elsewhere"))
    with pytest.raises(AssertionError, match="400"):
        await server.log_in(url)


async def test_a_refusal_there_is_told_in_words(provider: OidcProvider) -> None:
    options = LoginOptions.new(HERE)
    with pytest.raises(Invalid, match="You said no there"):
        await provider.exchange_code(
            Callback(state=options.state, error="access_denied", iss=provider.settings.issuer), options
        )

"""A real provider of OpenID Connect on loopback: idpyoidc, which shares no code with what we log in with."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qsl

import httpx
import msgspec
from cryptojwt.key_bundle import build_key_bundle  # type: ignore[import-untyped]  # it has no types
from idpyoidc.message.oauth2 import ResponseMessage  # type: ignore[import-untyped]  # it has no types
from idpyoidc.server import Server  # type: ignore[import-untyped]  # as above
from idpyoidc.server.configure import OPConfiguration  # type: ignore[import-untyped]  # as above
from idpyoidc.server.exception import (  # type: ignore[import-untyped]  # as above
    ClientAuthenticationError,
    FailedAuthentication,
)
from litestar.types import Receive, Scope, Send

from tests.asgi import body_of, door, serving

PASSWORD = "a password of a test"  # noqa: S105  # it opens nothing
PEOPLE = {
    "ada": {"name": "Ada Lovelace", "email": "ada@example.org", "email_verified": True},
    "bob": {"name": "Bob", "email": "bob@example.org", "email_verified": False},
}
SIGNING = [{"type": "RSA", "use": ["sig"]}, {"type": "EC", "crv": "P-256", "use": ["sig"]}]
CLIENT_ID, CLIENT_SECRET = "boxoffice", "a-secret-of-32-characters-or-more"


class OidcServer:
    """What it is, and what a person or an operator does there."""

    def __init__(self, issuer: str, redirect_uris: tuple[str, ...], keys: str, thin: bool) -> None:
        self.issuer, self.client_id, self.client_secret = issuer, CLIENT_ID, CLIENT_SECRET
        self._server = Server(OPConfiguration(configuration(issuer, thin)), cwd=keys)
        self._server.context.cdb[CLIENT_ID] = {
            "client_secret": CLIENT_SECRET,
            "redirect_uris": [(each, {}) for each in redirect_uris],
            "response_types": ["code"],
            "allowed_scopes": ["openid", "profile", "email", "offline_access"],
            "token_endpoint_auth_method": "client_secret_basic",
        }
        self.asked: list[str] = []  # paths
        self.hangs = False  # it takes every question and answers none

    async def log_in(self, authorization_url: str, user: str = "ada") -> str:
        """Do what `user` does in a browser there: log in. Where it sends the browser then."""
        async with httpx.AsyncClient() as browser:
            answer = await browser.get(authorization_url, auth=(user, PASSWORD))
        assert answer.status_code == 302, f"{answer.status_code}: {answer.text}"
        return answer.headers["location"]

    def rotate_keys(self) -> None:
        """Sign with new keys from now on, and publish no others. Its own tokens are signed with them too, and end."""
        keys, new = self._server.keyjar, build_key_bundle(SIGNING)
        for owner in ("", self.issuer):
            del keys[owner]
            keys.add_kb(owner, new)

    def forget(self, user: str) -> None:
        """End everything that `user` has there, as if the account were closed."""
        sessions = self._server.context.session_manager
        for grant in sessions.grants(path=[user, CLIENT_ID]):
            grant.revoke_token()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(scope["path"])
        if self.hangs:
            await asyncio.get_running_loop().create_future()
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        query = dict(parse_qsl(scope["query_string"].decode()))
        form = dict(parse_qsl((await body_of(receive)).decode()))
        status, sent, body = self._answer(scope["path"], headers, query, form)
        raw = [(name.lower().encode(), value.encode()) for name, value in sent]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": body.encode(), "more_body": False})

    def _answer(
        self, path: str, headers: dict[str, str], query: dict[str, str], form: dict[str, str]
    ) -> tuple[int, list[tuple[str, str]], str]:
        """Status, headers and body: what idpyoidc's own examples do for Flask."""
        if path == "/jwks.json":
            return 200, [("content-type", "application/json")], self._server.keyjar.export_jwks_as_json("")
        endpoint = next((each for each in self._server.endpoint.values() if each.full_path.endswith(path)), None)
        if endpoint is None:
            return 404, [], "There is nothing here"
        cookies = [{"name": each.key, "value": each.value} for each in SimpleCookie(headers.get("cookie")).values()]
        asked = {"headers": headers, "cookie": cookies}
        try:
            request = endpoint.parse_request(query or form, http_info=asked)
            if is_error(request):
                return refusal(400, request.to_dict())
            login = {"authn": headers["authorization"]} if "authorization" in headers else {}
            result = endpoint.process_request(request, http_info=asked, **login)
        except ClientAuthenticationError:
            return refusal(401, {"error": "invalid_client"})
        except (FailedAuthentication, KeyError):
            return 401, [("www-authenticate", "Basic")], "Who are you?"
        if is_error(result):
            return refusal(400, result.to_dict())
        if "http_response" in result:
            return 401, [("www-authenticate", "Basic")], "Who are you?"
        info = endpoint.do_response(request=request, **result)
        if endpoint.response_placement == "url":
            return 302, [("location", info["response"])], ""
        return 200, info["http_headers"], info["response"] or ""


def is_error(message: object) -> bool:
    return isinstance(message, ResponseMessage) and "error" in message


def refusal(status: int, error: dict[str, Any]) -> tuple[int, list[tuple[str, str]], str]:
    return status, [("content-type", "application/json")], msgspec.json.encode(error).decode()


def configuration(issuer: str, thin: bool) -> dict[str, Any]:
    """A provider that knows a few people, wants PKCE, and gives a refresh token that serves once."""
    secret = [{"type": "oct", "bytes": 24, "use": ["enc"], "kid": each} for each in ("code", "refresh")]
    jwt, ours = "idpyoidc.server.token.jwt_token.JWTToken", {"client_authn_method": ["client_secret_basic"]}
    return {
        "issuer": issuer,
        "base_url": issuer,
        "httpc_params": {"verify": True},
        "key_conf": {"key_defs": SIGNING, "uri_path": "jwks.json"},
        "preference": {"subject_types_supported": ["public"]},
        "token_handler_args": {
            "key_conf": {"key_defs": secret},
            "code": {"lifetime": 600, "kwargs": {}},
            "token": {"class": jwt, "kwargs": {"lifetime": 3600}},
            "refresh": {"class": jwt, "kwargs": {"lifetime": 86_400}},
            "id_token": {
                "class": "idpyoidc.server.token.id_token.IDToken",
                "kwargs": {"add_claims_by_scope": not thin},
            },
        },
        "endpoint": {
            "provider_info": {
                "path": ".well-known/openid-configuration",
                "class": "idpyoidc.server.oidc.provider_config.ProviderConfiguration",
                "kwargs": {"client_authn_method": None},
            },
            "authorization": {
                "path": "authorization",
                "class": "idpyoidc.server.oidc.authorization.Authorization",
                "kwargs": {
                    "client_authn_method": None,
                    "response_types_supported": ["code"],
                    "response_modes_supported": ["query"],
                },
            },
            "token": {
                "path": "token",
                "class": "idpyoidc.server.oidc.token.Token",
                "kwargs": {**ours, "revoke_refresh_on_issue": True},
            },
            "userinfo": {
                "path": "userinfo",
                "class": "idpyoidc.server.oidc.userinfo.UserInfo",
                "kwargs": {"client_authn_method": ["bearer_header"]},
            },
            "revocation": {
                "path": "revocation",
                "class": "idpyoidc.server.oauth2.token_revocation.TokenRevocation",
                "kwargs": ours,
            },
        },
        "authentication": {
            "user": {
                "acr": "urn:oasis:names:tc:SAML:2.0:ac:classes:InternetProtocolPassword",
                "class": "idpyoidc.server.user_authn.user.BasicAuthn",
                "kwargs": {"pwd": dict.fromkeys(PEOPLE, PASSWORD)},
            }
        },
        "userinfo": {"class": "idpyoidc.server.user_info.UserInfo", "kwargs": {"db": PEOPLE}},
        "add_on": {
            "pkce": {
                "function": "idpyoidc.server.oauth2.add_on.pkce.add_support",
                "kwargs": {"essential": True, "code_challenge_methods": {"S256": None}},
            }
        },
    }


@asynccontextmanager
async def oidc_server(*redirect_uris: str, thin: bool = False) -> AsyncIterator[OidcServer]:
    """One that sends people back to `redirect_uris` and to nowhere else.

    Who has no browser logs in with `log_in`; who has one is asked for a name of `PEOPLE` and `PASSWORD` by HTTP Basic.
    `thin`: its ID tokens say nothing but who it is.
    """
    with tempfile.TemporaryDirectory(prefix="boxoffice-test-") as keys:
        async with door() as listening:
            host, port = listening.getsockname()
            server = OidcServer(f"http://{host}:{port}", redirect_uris, keys, thin)
            async with serving(server, listening):
                yield server

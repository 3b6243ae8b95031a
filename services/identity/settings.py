"""Variables of the identity service."""

from typing import Annotated

import msgspec
from msgspec import Meta

from common.events import Role
from common.settings import BadSetting, Settings
from services.identity.oidc import GOOGLE, ProviderName, ProviderSettings

EncryptionSecret = Annotated[
    str,
    Meta(pattern=r"^([!-~]{32,})?(?!\n)$", description="32 visible ASCII characters at least, that nobody can guess"),
]


class IdentitySettings(Settings, frozen=True, kw_only=True):
    """`signing_key`: private keys on the curve P-256 in PEM, one after the other; the first signs, all are believed.
    A new one comes behind the others until every replica has it, then in front of them, and they go a while later.

    `encryption_secret`: what providers give us is sealed with it; `encryption_secret_before`: what was used before.
    `oidc_...`: the provider that people log in with. With `offline_access` among the scopes many give a refresh token,
    with which they are asked again; Google gives one anyway. `oidc_providers`: more of them, as a JSON list of objects
    with `name`, `issuer`, `client_id`, `client_secret` and perhaps a list of `scopes`.
    `new_role`: what somebody is who logs in for the first time. `session_days`: how long a login lasts at most.
    `provider_minutes`: how often a provider is asked whether it still vouches for somebody who is logged in.
    """

    signing_key: str = ""
    encryption_secret: EncryptionSecret = ""
    encryption_secret_before: EncryptionSecret = ""
    oidc_name: ProviderName = "google"
    oidc_issuer: str = GOOGLE
    oidc_client_id: str = ""
    oidc_client_secret: str = ""
    oidc_scopes: str = "openid email profile"
    oidc_providers: str = "[]"
    new_role: Role = "buyer"
    session_days: Annotated[int, Meta(ge=1, le=365)] = 30
    provider_minutes: Annotated[int, Meta(ge=1, le=10_080)] = 60

    def runs_it(self, email: str | None) -> bool:
        """Whether an address, however it is written, is that of an operator."""
        return email is not None and email.lower() in {name.lower() for name in self.operator_names}

    @property
    def providers(self) -> list[ProviderSettings]:
        """Whom people can log in with. Raises BadSetting."""
        try:
            found = msgspec.json.decode(self.oidc_providers, type=list[ProviderSettings])
        except msgspec.MsgspecError as error:
            raise BadSetting(f"BOXOFFICE_OIDC_PROVIDERS: {error}") from error
        if self.oidc_client_id:
            found.insert(
                0,
                ProviderSettings(
                    name=self.oidc_name,
                    issuer=self.oidc_issuer,
                    client_id=self.oidc_client_id,
                    client_secret=self.oidc_client_secret,
                    scopes=tuple(self.oidc_scopes.split()),
                ),
            )
        if len({each.name for each in found}) < len(found):
            raise BadSetting("BOXOFFICE_OIDC_PROVIDERS: two providers have the same name")
        return found

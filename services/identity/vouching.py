"""Whether whoever was let in may stay: of providers now and then, of the settings and secrets at each start."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta

import asyncpg
import structlog

from common.clock import now
from common.errors import Unauthenticated, Unavailable
from common.postgres import POSTGRES_FAILED
from common.projector import Projected
from services.identity import people, read_model
from services.identity.domain import EndLogins, KeepOperator, Users, place_id_of
from services.identity.oauth import OAuthService
from services.identity.sealing import CannotOpen, Sealer
from services.identity.settings import IdentitySettings

log = structlog.get_logger()


class Vouching:
    """Asks, and ends what is not vouched for any more. A worker.

    Nobody waits for a provider: it is asked beside what its user does. One that is away is asked again later.
    """

    def __init__(
        self,
        users: Users,
        providers: Mapping[str, OAuthService],
        sealer: Sealer | None,
        projected: Projected,
        pool: asyncpg.Pool,
        settings: IdentitySettings,
    ) -> None:
        self.name = "vouching"
        self.problem: str | None = None
        self._users = users
        self._providers = providers
        self._sealer = sealer
        self._projected = projected
        self._pool = pool
        self._settings = settings
        self._asking: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Do as the settings say now, and then what is asked for, until cancelled."""
        while True:
            try:
                await self._follow_settings()
                await self._seal_anew()
                break
            except (Unavailable, *POSTGRES_FAILED) as error:  # as at every start, for a moment
                self.problem = f"it is not looked at yet what the settings say of people: {error}"
                await asyncio.sleep(0.2)
        self.problem = None
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            for task in self._asking:
                task.cancel()

    def ask(self, user_id: str) -> None:
        """See to it that a user's provider is asked whether it still knows them, if that is due."""
        if self._sealer is not None and self._providers:
            task = asyncio.create_task(self._ask(user_id, self._sealer))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def _ask(self, user_id: str, sealer: Sealer) -> None:
        try:
            after = timedelta(minutes=self._settings.provider_minutes)
            vouched = await people.to_be_checked(self._pool, user_id, now(), after)
            if vouched is None or (provider := self._providers.get(vouched.provider)) is None:
                return
            found = await provider.refresh(sealer.open(vouched.sealed, user_id), vouched.subject)
            await people.renew(self._pool, user_id, vouched.sealed, sealer.seal(found.refresh_token, user_id))
        except Unauthenticated:
            log.warning("not_vouched_for", user_id=user_id)
            await self._users.handle(place_id_of(user_id), EndLogins(user_id, None, now()))
            await people.forget_token(self._pool, user_id)
        except (Unavailable, CannotOpen, *POSTGRES_FAILED) as error:
            log.warning("provider_not_asked", user_id=user_id, error=repr(error))
        except Exception:
            log.exception("provider_not_asked", user_id=user_id)

    async def _follow_settings(self) -> None:
        """Whom the settings made an operator, and do not any more, is none from now on. Raises Unavailable."""
        if not await self._projected.catch_up():
            raise Unavailable("the read model of users is behind the log")
        for user_id, email in await read_model.operators(self._pool):
            if not self._settings.runs_it(email):
                command = KeepOperator(user_id, self._settings.new_role, now())
                await self._users.handle(place_id_of(user_id), command)

    async def _seal_anew(self) -> None:
        """Seal with the secret of today what was sealed with another; what cannot be opened is forgotten, and told."""
        if self._sealer is None:
            return
        anew, lost = 0, 0
        for user_id, sealed in await people.sealed(self._pool):
            if self._sealer.is_current(sealed):
                continue
            try:
                renewed = self._sealer.seal(self._sealer.open(sealed, user_id), user_id)
            except CannotOpen:
                lost += 1
                await people.forget_token(self._pool, user_id)
            else:
                anew += 1
                await people.renew(self._pool, user_id, sealed, renewed)
        if anew or lost:
            log.warning("sealed_anew", anew=anew, lost=lost)

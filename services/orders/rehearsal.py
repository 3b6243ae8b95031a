"""What listeners do with payments in a rehearsal."""

from uuid import UUID

from common.rehearsal import NotForeseen, Rehearsal


class NotedGateway:
    """A gateway that moves no money. What the real one would answer is not known; this one agrees to what is asked."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        self._rehearsal = rehearsal

    async def authorise(self, payment_id: UUID, token: str, amount: int, currency: str) -> None:  # noqa: ARG002 (no token is noted)
        self._rehearsal.note("authorise", f"authorise payment {payment_id} of {amount} {currency}")
        raise NotForeseen("what the gateway answers")

    async def capture(self, payment_id: UUID) -> None:
        self._rehearsal.note("capture", f"capture payment {payment_id}")

    async def void(self, payment_id: UUID) -> None:
        self._rehearsal.note("void", f"void payment {payment_id}")

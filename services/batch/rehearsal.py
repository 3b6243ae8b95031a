"""What becomes of pieces of work in a rehearsal: it is looked what would be executed of them."""

from collections.abc import Mapping

from common.errors import Retry
from common.events import Priority
from common.rehearsal import NotForeseen, Rehearsal
from services.batch.collector import PAUSED_SECONDS, Released
from services.batch.domain import Batches, Kinds, Works, kind_id_of


class NotedWork:
    """Executes nothing, and so knows no results."""

    def __init__(self, rehearsal: Rehearsal, works: Mapping[Priority, Works], batches: Batches, paused: Kinds) -> None:
        self._rehearsal = rehearsal
        self._works = works
        self._batches = batches
        self._paused = paused

    async def execute(self, piece: Released) -> None:
        """Raises Retry while its kind is paused; NotForeseen."""
        there = (await self._works[piece.priority].load(piece.work_id, fresh=True)).state
        batch = (await self._batches.load(piece.batch_id, fresh=True)).state if piece.batch_id else None
        cancelled = batch is not None and batch.cancelled
        if not cancelled and (await self._paused.load(kind_id_of(piece.kind), fresh=True)).state:
            raise Retry(PAUSED_SECONDS)
        if there.run != piece.run or not (left := len(there.left)):
            return
        if cancelled:
            self._rehearsal.note("cancel", f"cancel {left} of {piece.kind}, as their batch is cancelled")
        else:
            self._rehearsal.note("execute", f"execute {left} of {piece.kind}")
        raise NotForeseen("what comes of these operations")

    async def give_up(self, released: Released, why: str) -> None:
        self._rehearsal.note("give_up", f"give up piece {released.work_id}: {why}")

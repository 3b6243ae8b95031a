"""HTTP -> how the running system is, for operators."""

from litestar import Controller, get
from litestar.di import NamedDependency

from common.auth import RequiresUser
from common.limits import Limited
from common.problems import problems
from services.history.overview import Overview, SystemView


class SystemController(Controller):
    """The system that runs, as operators look at it."""

    path = "/api/system"
    tags = ("system",)
    middleware = (RequiresUser("events", "operator"), Limited("changes"))

    @get("/", responses=problems(503))
    async def read(self, overview: NamedDependency[Overview]) -> SystemView:
        """Services, streams, consumers and read models, who publishes what and who hears it; at most a second old.

        Rates come of two answers: the difference of `sequence` or `delivered`, by that of `at`. With 503 NATS does not
        answer.
        """
        return await overview.view()

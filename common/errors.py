"""The few kinds of error. Each is mapped once per door: HTTP in `problems.py`, listeners, requests over NATS."""


class DomainError(Exception):
    """The system says no, and why. `detail` is for a person; `context` are further members of the answer."""

    def __init__(self, detail: str, **context: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.context = context


class Invalid(DomainError):
    """What was asked makes no sense, whatever the state is."""


class Unauthenticated(DomainError):
    """Nobody said who they are, or it could not be believed."""


class Forbidden(DomainError):
    """It is there for them to see, but not theirs to change."""


class PaymentDeclined(DomainError):
    """The buyer's bank said no."""


class NotFound(DomainError):
    """There is no such thing, or not for this person."""


class Conflict(DomainError):
    """The state of things does not allow it: sold out, over, withdrawn."""


class Stale(DomainError):
    """Somebody else changed it since the caller looked."""


class PreconditionRequired(DomainError):
    """The caller must say which version they looked at."""


class TooManyRequests(DomainError):
    """Somebody asks more than is good for all others; `retry_after`: whole seconds until they may ask again."""


class Unavailable(DomainError):
    """A server this depends on does not answer; the same request may succeed later."""


class Retry(Exception):
    """A listener asks for the same event again, `after` seconds from now or in a day. It is never dead-lettered."""

    def __init__(self, after: float) -> None:
        super().__init__(f"again in {after:.3f} s")
        self.after = after

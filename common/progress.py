"""How long work tells how far it has come."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Is told a stream, how far it has come and how far it is to go: in sequences, or in bytes where that is said."""


def untold(_stream: str, _done: int, _total: int) -> None:
    """The progress that nobody wants to hear of."""

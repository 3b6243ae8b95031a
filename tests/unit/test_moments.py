"""How a moment of the log is named on the command line."""

from datetime import UTC, datetime, timedelta

import pytest
import rich_click as click

from common.clock import now
from services.cli.base import MOMENT


@pytest.mark.parametrize(
    ("text", "ago"),
    [("now", {}), ("90s", {"seconds": 90}), ("15m", {"minutes": 15}), ("2h", {"hours": 2}), ("1d", {"days": 1})],
)
def test_a_moment_may_be_so_long_ago(text: str, ago: dict[str, int]) -> None:
    earliest = now()
    moment = MOMENT.convert(text, None, None)
    assert isinstance(moment, datetime)
    assert earliest <= moment + timedelta(**ago) <= now()


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("120", 120),
        ("0", 0),
        ("2030-01-31", datetime(2030, 1, 31, tzinfo=UTC)),
        ("2030-01-31T19:30:00Z", datetime(2030, 1, 31, 19, 30, tzinfo=UTC)),
        ("2030-01-31T19:30:00.5+02:00", datetime(2030, 1, 31, 17, 30, 0, 500_000, tzinfo=UTC)),
    ],
)
def test_a_moment_is_a_time_or_a_sequence(text: str, moment: datetime | int) -> None:
    assert MOMENT.convert(text, None, None) == moment


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "-5",
        "1.5",
        "2030-01-31T19:30:00",
        "2030-02-31",
        "99999999999d",
        "2w",
        "0001-01-01T00:00:00+14:00",
    ],
)
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no moment"):
        MOMENT.convert(text, None, None)

"""What `boxoffice replay listener` refuses before it asks anybody."""

import pytest
from click.testing import CliRunner

from common.topology import CONSUMER
from services.cli.main import cli


def refused(*arguments: str) -> str:
    """What is said against it, in one line."""
    ended = CliRunner().invoke(cli, ["replay", "listener", *arguments], env={"COLUMNS": "1000"})
    assert ended.exit_code == 2
    return " ".join(ended.output.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Say --dry-run, to see what it would do, or --confirm, to have the running system do it. "),
        (["--dry-run", "--confirm"], "or --confirm, to have the running system do it; not both."),
        (["--confirm", "--rate", "0/s"], "'0/s' is no rate: give one as 10/s, 100/min or 500/h, at most 1000/s."),
        (["--confirm", "--rate", "1001/s"], "'1001/s' is no rate"),
        (["--confirm", "--rate", "10"], "'10' is no rate"),
        (["--dry-run", "--since", "yesterday"], "'yesterday' is no moment"),
        (["--dry-run", "--limit", "0"], "0 is not in the range"),
    ],
    ids=["neither", "both", "no rate", "too fast", "no unit", "no moment", "no limit"],
)
def test_what_makes_no_sense_is_refused_and_says_what_would(arguments: list[str], says: str) -> None:
    assert says in refused("orders-cancel-expired", *arguments)


def test_a_name_that_no_listener_has_lists_those_there_are() -> None:
    assert f"no listener orders-cancel; there are {', '.join(CONSUMER)}." in refused("orders-cancel", "--dry-run")

"""`boxoffice new`: the names it takes, the lists it adds to, and that it does all of it or nothing."""

import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from common import rights
from common.errors import Conflict, Invalid, Unavailable
from common.events import OWNERS
from common.topology import SERVICES
from services.cli.main import cli
from services.cli.new import EDITS, ROOT, Change, Checkout, Names, names_of
from services.cli.new_edits import Module, NotAsExpected

STAMPS = Names("philately", "rare_stamp", "rare_stamps")
"""What nobody has in a checkout of theirs, where these tests run too."""


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (("philately", None, None), Names("philately", "philately", "philatelies")),
        (("reviews", None, None), Names("reviews", "review", "reviews")),
        (("passes", None, None), Names("passes", "pass", "passes")),
        (("deliveries", None, None), Names("deliveries", "delivery", "deliveries")),
        (("philately", "rare_stamp", None), STAMPS),
        (("guests", "person", "people"), Names("guests", "person", "people")),
    ],
)
def test_what_a_service_keeps_is_called_as_it_is_unless_said_otherwise(
    given: tuple[str, str | None, str | None], names: Names
) -> None:
    assert names_of(*given) == names


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("Loyalty", None, None), "name: Expected 2 to 20 lower-case letters"),
        (("gift-cards", None, None), "name: Expected 2 to 20 lower-case letters"),
        (("a", None, None), "name: Expected"),
        (("x" * 21, None, None), "name: Expected"),
        (("../x", None, None), "name: Expected"),
        (("import", None, None), "name: import means something in Python"),
        (("queue", None, None), "name: queue means something in Python"),
        (("philately", "GiftCard", None), "--aggregate: Expected lower-case words"),
        (("philately", "gift__card", None), "--aggregate: Expected"),
        (("philately", "g" * 25, None), "--aggregate: Expected"),
        (("philately", "sheep", "sheep"), "--plural: sheep is the singular too"),
        (("philately", "card", "Cards"), "--plural: Expected"),
    ],
)
def test_a_name_that_will_not_do_is_refused_with_one_that_would(
    given: tuple[str, str | None, str | None], says: str
) -> None:
    with pytest.raises(Invalid, match=says):
        names_of(*given)


@pytest.mark.parametrize(
    "name",
    [*SERVICES, *OWNERS, "dead", "requests", "migrate", "templates", "docs", "openapi", "account", "fake_gateway"],
)
def test_a_name_that_is_taken_is_refused(name: str) -> None:
    with pytest.raises(Conflict, match=f"name: {name} is taken"):
        Checkout().require_free(Names(name, "rare_stamp", "rare_stamps"))


@pytest.mark.parametrize(
    "thing", ["ticket", "note", "pool", "order", "owner", "event", "users", "class", "filter", "ab", "kind"]
)
def test_a_word_that_would_mean_two_things_is_refused(thing: str) -> None:
    with pytest.raises(Conflict, match=r"--aggregate: .*call it otherwise"):
        Checkout().require_free(Names("philately", thing, f"{thing}s"))


def test_forms_of_a_name_stand_for_forms_of_the_name_in_the_templates() -> None:
    text = (
        'BIG_WHEELS = Decider("fairground"); class BigWheel: """A big wheel; big wheels of FAIRGROUND."""; big_wheel_id'
    )
    assert Names("art", "easel", "easels").fill(text) == (
        'EASELS = Decider("art"); class Easel: """An easel; easels of ART."""; easel_id'
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("X = (1, 2)", "X = (1, 2, new)"),
        ("X: Any = (\n    1,\n    2,  # the second\n)", "X: Any = (\n    1,\n    2, new,  # the second\n)"),
        ('X = {"ü": 1, "b": [2]}', 'X = {"ü": 1, "b": [2], new}'),
        ('X = Literal["a"]\nY = ("b",)', None),
        ('X = Literal["a", "b"]', 'X = Literal["a", "b", new]'),
        ("X = {a.name: a for a in (A, B)}", "X = {a.name: a for a in (A, B, new)}"),
        ("if True:\n    X = (1,)", None),
        ("X = ()", None),
        ("X = call()", None),
        ("", None),
    ],
)
def test_an_element_is_added_where_the_syntax_says_or_it_is_told_what_was_looked_for(
    before: str, after: str | None
) -> None:
    module = Module("some/file.py", before)
    if after is None:
        with pytest.raises(NotAsExpected, match=r"some/file\.py: looked for .*`X"):
            module.add("X", "new")
    else:
        module.add("X", "new")
        assert module.text == after


def test_an_element_is_added_before_another_one() -> None:
    module = Module("file.py", 'X = (f("é", "a"), f("b"))')
    module.add("X", "new", before="b")
    assert module.text == 'X = (f("é", "a"), new, f("b"))'
    with pytest.raises(NotAsExpected, match="an element with 'c' in `X`"):
        module.add("X", "new", before="c")


def test_a_file_that_is_no_python_is_not_touched() -> None:
    with pytest.raises(NotAsExpected, match=r"file\.py, line 1: .*mend that first"):
        Module("file.py", "X = (")


@pytest.mark.parametrize("path", [path for path in EDITS if path.endswith((".py", ".md"))])
def test_a_file_that_names_services_in_another_way_is_told_of(path: str) -> None:
    with pytest.raises(NotAsExpected, match=path):
        EDITS[path](path, "", STAMPS)


# What deploys it


@pytest.fixture
def deployed(tmp_path: Path) -> Path:
    """Sources that are deployed."""
    shutil.copytree(ROOT / "common", tmp_path / "common")
    written = {
        "k8s/base/kustomization.yaml": "resources:\n  - tickets\n  - web\n",
        "k8s/base/tickets/kustomization.yaml": "name: tickets\n",
        "deploy/gateway/nginx.conf": "upstream tickets {}\n",
        "deploy/secrets/tickets/values.yaml": "password: secret\n",
        "deploy/nats/users.conf": f"# Made by a command.\n{rights.nats_configuration()}",
    }
    for path, text in written.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


def test_it_is_deployed_as_tickets_is_and_no_secret_is_read(deployed: Path) -> None:
    assert {change.path: change.after for change in Checkout(deployed).deployed(STAMPS)} == {
        "k8s/base/kustomization.yaml": "resources:\n  - tickets\n  - philately\n  - web\n",
        "k8s/base/philately/kustomization.yaml": "name: philately\n",
        "deploy/gateway/nginx.conf": "upstream tickets {}\nupstream philately {}\n",
    }


def test_files_of_rights_have_those_of_the_new_service(deployed: Path) -> None:
    there = Checkout(deployed)
    topology = "common/topology.py"
    changed = Change(topology, there.read(topology), EDITS[topology](topology, there.read(topology), STAMPS))
    (users,) = there.rights([changed])
    assert (users.path, users.after.startswith("# Made by a command.\n")) == ("deploy/nats/users.conf", True)
    assert '"user": "philately"' in users.after
    assert '"user": "philately"' not in (users.before or "")
    (deployed / users.path).write_text("# By hand.")
    with pytest.raises(NotAsExpected, match=r"users\.conf: looked for what common/rights\.py makes"):
        list(there.rights([changed]))


# The command


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Something like a checkout, of which all is committed."""
    for file in ("pyproject.toml", "services/cli/system.py", "tests/corpus/orders.jsonl"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "Begin"]):
        subprocess.run([*git, *words], check=True)
    return tmp_path


def test_it_wants_sources_of_which_all_is_committed(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    there = Checkout(checkout)
    there.require_sources(checkout / "services", dirty=False)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with pytest.raises(Invalid, match="go there first"):
        there.require_sources(elsewhere, dirty=True)
    with pytest.raises(Unavailable, match="runs without its sources"):
        Checkout(elsewhere).require_sources(elsewhere, dirty=True)
    (checkout / "services" / "mine.py").write_text("")
    with pytest.raises(Conflict, match=r"services/mine\.py"):
        there.require_sources(checkout, dirty=False)
    there.require_sources(checkout, dirty=True)


def test_of_what_cannot_be_written_whole_nothing_is_written(checkout: Path) -> None:
    (checkout / "file").write_text("a file, no folder")
    before = sorted(each for each in checkout.rglob("*") if ".git" not in each.parts)
    with pytest.raises(OSError, match="file"):
        Checkout(checkout).write(
            [Change("new/deep/a.py", None, "a"), Change("pyproject.toml", "", "b"), Change("file/b.py", None, "c")]
        )
    assert sorted(each for each in checkout.rglob("*") if ".git" not in each.parts) == before
    assert (checkout / "pyproject.toml").read_text() == ""


def test_what_is_there_already_stays(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "common/events").mkdir(parents=True)
    (checkout / "common/events/philately.py").write_text("mine")
    there = Checkout(checkout)
    monkeypatch.setattr(there, "require_free", lambda _: None)
    with pytest.raises(Conflict, match=r"common/events/philately\.py is there already"):
        there.changes(STAMPS)


def test_a_dry_run_shows_a_diff_and_changes_nothing() -> None:
    before = Checkout().read("common/topology.py")
    done = CliRunner().invoke(cli, ["new", "philately", "--aggregate", "rare_stamp", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "+++ b/services/philately/domain.py" in done.output
    assert '+    Stream("PHILATELY", ("philately.*",), ("philately",), readers=("history",)),' in done.output
    assert Checkout().read("common/topology.py") == before
    assert not (ROOT / "services/philately").exists()


def test_what_will_not_do_is_told_in_a_line() -> None:
    done = CliRunner().invoke(cli, ["new", "orders", "--force"])
    assert (done.exit_code, "name: orders is taken" in done.output) == (1, True)

"""`boxoffice new`: a service with all its rooms, tests and entries, made from templates and named in every list."""

import builtins
import difflib
import io
import json
import keyword
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from common.errors import Conflict, Invalid, Unavailable
from services.cli.new_edits import Module, NotAsExpected

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = Path(__file__).parent / "new_service"
SUFFIX = ".tmpl"
"""What is a template is no code for whoever checks code."""

SERVICE = re.compile("[a-z]{2,20}")
WORDS = re.compile("(?!.{25})[a-z]+(?:_[a-z]+)*")
"""So that no line of what is made is too long."""

MODEL = "tickets"
"""As this service is deployed, what is made is too: it has doors and a read model, and no variables of its own."""

MANIFESTS = ("k8s/**/*.yaml", "deploy/**/*.yaml", "deploy/**/*.yml", "deploy/gateway/*.conf", "k8s/**/*.conf")

MADE_BY_RIGHTS = {
    "deploy/nats/users.conf": "nats_configuration",
    "deploy/postgres/roles.sql": "postgres_configuration",
    "k8s/components/postgres-cnpg/roles.sql": "postgres_roles",
}
"""Files that hold what a function of common/rights.py makes."""

OURS = 'lint.isort.known-first-party = ["common", "services", "tests"]'
"""Ruff looks for a package on disk to tell whose it is, and one that is made is not there yet."""

NOT_SERVICES = {
    *("dead", "restoring", "requests", "restored", "log", "redeliver"),  # subjects and streams that are nobody's
    *("migrate", "test", "boxoffice", "postgres", "public", "all", "new"),  # users, schemas
    *("common", "services", "cli", "tests", "redelivery", "credentials"),  # code, and what it calls itself
}
NOT_THINGS = {"references", "values", "tables", "users"}
"""Words that mean something to Postgres, or to whoever reads that somebody creates one."""


class Names(msgspec.Struct, frozen=True):
    """What is made: a service, and the one kind of thing it keeps, in the singular and the plural (`snake_case`)."""

    service: str
    thing: str
    things: str

    def fill(self, template: str) -> str:
        """A template with these names in place of those of a fairground of big wheels, in each of their forms."""
        for there, here in self._forms():
            template = re.sub(rf"\b([Aa])(?= {there})", r"\1n" if here[0] in "aeiou" else r"\1", template)
            template = template.replace(there, here)
        return template

    def _forms(self) -> Iterator[tuple[str, str]]:
        """The words of the templates, the longer ones first, and what stands for them."""
        yield "FAIRGROUND", self.service.upper()
        yield "fairground", self.service
        for there, here in (("big_wheels", self.things), ("big_wheel", self.thing)):
            yield there.upper(), here.upper()
            yield pascal(there), pascal(here)
            yield there, here
            yield there.replace("_", " "), here.replace("_", " ")
            yield there.replace("_", " ").capitalize(), here.replace("_", " ").capitalize()


class Change(msgspec.Struct, frozen=True):
    """A file as it is to be. `before`: as it is; None if it is new. `path` is relative to the checkout."""

    path: str
    before: str | None
    after: str

    def diff(self) -> str:
        """As `diff -u` shows it."""
        old, new = (text.splitlines(keepends=True) for text in (self.before or "", self.after))
        was = "/dev/null" if self.before is None else f"a/{self.path}"
        return "".join(difflib.unified_diff(old, new, was, f"b/{self.path}"))


def pascal(words: str) -> str:
    """As classes are called."""
    return "".join(word.capitalize() for word in words.split("_"))


def names_of(service: str, thing: str | None, things: str | None) -> Names:
    """The names of a service to be; its things are by default called as it is. Raises Invalid."""
    require(SERVICE, service, "name", "2 to 20 lower-case letters, such as loyalty")
    if keyword.iskeyword(service) or keyword.issoftkeyword(service) or service in sys.stdlib_module_names:
        raise Invalid(f"name: {service} means something in Python; take another word.")
    if thing is None:
        thing, things = singular(service), things or (service if singular(service) != service else None)
    require(
        WORDS, thing, "--aggregate", "lower-case words with _ between them, such as gift_card, 24 characters at most"
    )
    things = things or plural(thing)
    require(
        WORDS, things, "--plural", "lower-case words with _ between them, such as gift_cards, 24 characters at most"
    )
    if things == thing:
        raise Invalid(f"--plural: {things} is the singular too; say with --plural how many are called.")
    return Names(service, thing, things)


def require(pattern: re.Pattern[str], given: str, what: str, wanted: str) -> None:
    if not pattern.fullmatch(given):
        raise Invalid(f"{what}: Expected {wanted}, got {given!r}.")


def singular(word: str) -> str:
    """`reviews` -> `review`; a word that is none in the plural stays."""
    if word.endswith("ies"):
        return word[:-3] + "y"
    if re.search("(?:ss|x|ch|sh)es$", word):
        return word[:-2]
    return word[:-1] if re.search("[^s]s$", word) else word


def plural(word: str) -> str:
    """`review` -> `reviews`, as English mostly has it."""
    if re.search("[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if re.search("(?:s|x|ch|sh)$", word) else "s")


class Checkout:
    """The sources that this command itself is of, as they are on disk."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root

    def require_sources(self, here: Path, *, dirty: bool) -> None:
        """Raises Unavailable where there are none, Invalid elsewhere than in them, Conflict where not all is committed.

        `dirty`: that does not matter.
        """
        if not all(
            (self.root / each).exists() for each in ("pyproject.toml", "tests/corpus", "services/cli/system.py")
        ):
            raise Unavailable(
                f"This `boxoffice` runs without its sources ({self.root}). Clone the project, run `make .venv/tested` "
                "there, and then its .venv/bin/boxoffice."
            )
        if self.root not in (here, *here.parents):
            raise Invalid(f"This `boxoffice` is that of {self.root}, and would make a service there; go there first.")
        if dirty:
            return
        told = subprocess.run(  # noqa: S603 (a fixed command)
            ["git", "-C", str(self.root), "status", "--porcelain"],  # noqa: S607 (as a person would)
            capture_output=True,
            text=True,
            check=False,
        )
        if told.returncode:
            raise Conflict(f"Git does not say whether all is committed: {told.stderr.strip()} --force goes on anyway.")
        if told.stdout:
            raise Conflict(
                "Not all is committed, and then nobody could tell what this changes:\n"
                f"{told.stdout.rstrip()}\nCommit it, or go on with --force."
            )

    def read(self, path: str) -> str:
        """A file's text. Raises NotAsExpected."""
        try:
            return (self.root / path).read_text()
        except FileNotFoundError as error:
            raise NotAsExpected(f"{path}: looked for this file, and there is none. Nothing was changed.") from error

    def require_free(self, names: Names) -> None:
        """Raises Conflict for a name that something else has."""
        topology = Module("common/topology.py", self.read("common/topology.py"))
        events = Module("common/events/__init__.py", self.read("common/events/__init__.py"))
        system = Module("services/cli/system.py", self.read("services/cli/system.py"))
        taken = {*topology.words("SERVICES"), *events.words("OWNERS"), *system.words("SIDE_SCHEMAS")}
        taken |= {each.partition(".")[0].lower() for each in topology.words("STREAMS")}
        auth = Module("common/auth.py", self.read("common/auth.py"))
        taken |= {*auth.words("Area"), *self.paths(), *NOT_SERVICES}
        if names.service in taken:
            others = ", ".join(sorted(filter(SERVICE.fullmatch, taken)))
            raise Conflict(f"name: {names.service} is taken; take another one than {others}.")
        used = {*NOT_THINGS, *keyword.kwlist, *dir(builtins), *self.names_in_templates()}
        for word in (names.thing, names.things):
            if used & {word, f"{word}_id", pascal(word), word.upper()}:
                raise Conflict(f"--aggregate: {word} means something else in what is made; call it otherwise.")
        classes = events.words("__all__")
        for path, text in self.templates():
            told = re.findall(r"^(?:class )?(\w+)(?:\(Event| = )", text, re.MULTILINE)  # events, and all of them
            for name in told if path.startswith("common/") else ():
                if names.fill(name) in classes:
                    raise Conflict(f"--aggregate: There is a {names.fill(name)} already; call it otherwise.")

    def paths(self) -> set[str]:
        """With what the addresses of doors begin that there are."""
        files = (each for folder in ("common", "services") for each in (self.root / folder).rglob("*.py"))
        found = (each.read_text() for each in files if "cli" not in each.parts)
        return {part for text in found for part in re.findall("/api/([a-z]+)", text)}

    def names_in_templates(self) -> set[str]:
        """All names in what is made, but for those that are filled in."""
        return {
            token.string
            for path, text in self.templates()
            if path.endswith(".py")
            for token in tokenize.generate_tokens(io.StringIO(text).readline)
            if token.type == tokenize.NAME
        }

    def templates(self) -> Iterator[tuple[str, str]]:
        """Where each template leads, and what it says."""
        for file in sorted(TEMPLATES.rglob(f"*{SUFFIX}")):
            yield file.relative_to(TEMPLATES).as_posix().removesuffix(SUFFIX), file.read_text()

    def changes(self, names: Names) -> list[Change]:
        """All that makes the service. Nothing is written. Raises Conflict, NotAsExpected, Unavailable."""
        self.require_free(names)
        made = [Change(names.fill(path), None, names.fill(text)) for path, text in self.templates()]
        for change in made:
            if (self.root / change.path).exists():
                raise Conflict(f"{change.path} is there already, and stays as it is. Nothing was changed.")
        for path, edit in EDITS.items():
            before = self.read(path)
            made.append(Change(path, before, edit(path, before, names)))
        made = [self.formatted(change) for change in made]
        return [*made, *self.deployed(names), *self.rights(made)]

    def deployed(self, names: Names) -> Iterator[Change]:
        """What deploys the service, in the manifests that there are. Raises NotAsExpected, Unavailable."""
        manifests = [
            path.relative_to(self.root).as_posix()
            for pattern in MANIFESTS
            for path in sorted(self.root.glob(pattern))
            if "secrets" not in path.parts
        ]
        if not manifests:
            return
        try:
            from services.cli.new_deployment import Deployed
        except ModuleNotFoundError as error:
            raise Unavailable(
                "Manifests are read with PyYAML, which is not here: run `make .venv/tested` once."
            ) from error
        services = Module("common/topology.py", self.read("common/topology.py")).words("SERVICES")
        deployed = Deployed(MODEL, services)
        for path in manifests:
            text = self.read(path)
            if deployed.is_its_own(path):
                yield Change(deployed.renamed(path, names.service), None, deployed.renamed(text, names.service))
                continue
            if path.endswith(".conf"):
                after = deployed.lines(text, names.service)
            else:
                after = deployed.extended(path, text, names.service)
            if after != text:
                yield Change(path, text, after)

    def rights(self, changes: Sequence[Change]) -> Iterator[Change]:
        """Files of rights as they are made with these changes. Raises NotAsExpected."""
        there = {path: function for path, function in MADE_BY_RIGHTS.items() if (self.root / path).exists()}
        if not there:
            return
        with tempfile.TemporaryDirectory(prefix="boxoffice-new-") as folder:
            before = self._made_by_rights(self.root, there.values())
            shutil.copytree(self.root / "common", Path(folder) / "common")
            Checkout(Path(folder)).write([change for change in changes if change.path.startswith("common/")])
            after = self._made_by_rights(Path(folder), there.values())
        for path, function in there.items():
            text, old = self.read(path), before[function].strip()
            if old not in text:
                raise NotAsExpected(f"{path}: looked for what common/rights.py makes ({function}); make it anew first.")
            yield Change(path, text, text.replace(old, after[function].strip()))

    @staticmethod
    def _made_by_rights(root: Path, functions: Iterable[str]) -> dict[str, str]:
        """What these functions make in a process that runs on the sources in a folder."""
        script = "import json, sys; from common import rights; "
        script += "json.dump({name: getattr(rights, name)() for name in sys.argv[1:]}, sys.stdout)"
        done = subprocess.run(  # noqa: S603 (a fixed command)
            [sys.executable, "-P", "-c", script, *functions],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise NotAsExpected(f"common/rights.py: {done.stderr.strip()}")
        made: dict[str, str] = json.loads(done.stdout)
        return made

    def formatted(self, change: Change) -> Change:
        """As `make format` leaves it. Raises Unavailable without ruff."""
        if not change.path.endswith(".py"):
            return change
        text, at = change.after, ["--quiet", "--stdin-filename", str(self.root / change.path)]
        for work in (["check", "--fix", "--select", "I,RUF022", "--config", OURS], ["format"]):
            done = subprocess.run(  # noqa: S603 (a fixed command)
                [sys.executable, "-P", "-m", "ruff", *work, *at, "-"],
                input=text,
                capture_output=True,
                text=True,
                check=False,
                cwd=self.root,
            )
            if done.returncode and "No module named ruff" in done.stderr:
                raise Unavailable(
                    "What is made is formatted with ruff, which is not here: run `make .venv/tested` once."
                )
            if done.returncode:
                raise NotAsExpected(f"{change.path}: {done.stderr.strip() or done.stdout.strip()}")
            text = done.stdout
        return msgspec.structs.replace(change, after=text)

    def write(self, changes: Sequence[Change]) -> None:
        """All of it, or nothing: each file is complete beside its place before the first one takes it."""
        beside = {change.path: self.root / f"{change.path}.boxoffice-new" for change in changes}
        made: list[Path] = []
        try:
            for change in changes:
                folder = beside[change.path].parent
                made += [each for each in (folder, *folder.parents) if not each.exists()]
                folder.mkdir(parents=True, exist_ok=True)
                beside[change.path].write_text(change.after)
        except OSError:
            for file in beside.values():
                with suppress(OSError):  # where there is no folder there is no file
                    file.unlink()
            for each in sorted(made, reverse=True):
                each.rmdir()
            raise
        for change in changes:
            beside[change.path].replace(self.root / change.path)


def module(edit: Callable[[Module, Names], None]) -> Callable[[str, str, Names], str]:
    """An edit of a Python file."""

    def edited(path: str, before: str, names: Names) -> str:
        there = Module(path, before)
        edit(there, names)
        return there.text

    return edited


@module
def _events(there: Module, names: Names) -> None:
    created, changed, union = (names.fill(each) for each in ("BigWheelCreated", "BigWheelChanged", "BigWheelEvent"))
    there.add_import(f"from common.events.{names.service} import {created}, {changed}, {union}")
    for name in (created, changed, union):
        there.add("__all__", f'"{name}"')
    there.add("OWNERS", f'"{names.service}": {union}')


@module
def _topology(there: Module, names: Names) -> None:
    name = names.service
    there.add_sorted("SERVICES", name)
    stream = f'Stream("{name.upper()}", ("{name}.*",), ("{name}",), readers=("history",))'
    there.add("STREAMS", stream, before="REPAIRS")  # behind what services tell, before what is done about it
    there.add("CONSUMERS", f'Consumer("{name}-create-for-order", "ORDERS", "{name}")')


@module
def _auth(there: Module, names: Names) -> None:
    there.add("Area", f'"{names.service}"', before="account")
    for may in ("read", "write"):
        there.add("Scope", f'"{names.service}:{may}"')


@module
def _http(there: Module, names: Names) -> None:
    there.add_sorted("DOCUMENTED", names.service)


@module
def _system(there: Module, names: Names) -> None:
    rooms = f"services.{names.service}"
    for room in ("app", "domain", "read_model"):
        there.add_import(f"import {rooms}.{room}")
    there.add("DECIDERS", f"{rooms}.domain.{names.things.upper()}")
    there.add("READ_MODELS", f"{rooms}.read_model.READ_MODEL")
    there.add("SERVICES", f'"{names.service}": ({rooms}.app.create_service, Settings)')
    there.add("REHEARSALS", f'"{names.service}": {rooms}.app.rehearsed')


@module
def _rules(there: Module, names: Names) -> None:
    rules = f"services.{names.service}.domain:{names.things.upper()}"
    there.add("RULES", f'"{names.service}": ("{names.service.upper()}", ["{rules}"])')


@module
def _doors(there: Module, names: Names) -> None:
    collection, thing_id = f"/api/{names.service}", f"{names.thing}_id"
    one = f"{collection}/{{{thing_id}}}"
    doors = (("GET", collection, "read"), ("POST", collection, "write"), ("GET", one, "read"), ("PATCH", one, "write"))
    lines = [f"{method:6} {path:66} buyer    {names.service}:{may}" for method, path, may in doors]
    there.add_lines("DOORS", lines, before=lambda line: line.split()[1] > collection)
    there.add("MADE", f'"{thing_id}": ("{collection}", {{"note": "For the weekend"}})')
    there.add("BODIES", f'"PATCH {one}": {{"note": "Changed"}}')


@module
def _day(there: Module, names: Names) -> None:
    heard = names.fill('"fairground-create-for-order": ["done big_wheel_created"] * 2')
    there.add("OF_THAT_DAY", heard)  # on which two orders are paid for


def _schemathesis(_: str, before: str, names: Names) -> str:
    return before.rstrip("\n") + names.fill(SCHEMATHESIS)


SCHEMATHESIS = """

[[operations]]
include-name = "POST /api/fairground" # 422: an Idempotency-Key that was used for another big wheel
checks.positive_data_acceptance.expected-statuses = ["2xx", 401, 422]

[[operations]]
include-name = "PATCH /api/fairground/{big_wheel_id}" # 412: somebody else changed it
checks.positive_data_acceptance.expected-statuses = ["2xx", 401, 404, 412]
checks.missing_required_header.expected-statuses = [428]
"""


def _map(path: str, before: str, names: Names) -> str:
    """A column in the map of all services."""
    cells = {
        "room": names.service,
        "`domain.py`": names.fill("a big wheel"),
        "`api.py`": f"`/api/{names.service}`",
        "`listeners.py`": "one for what was paid for",
        "`read_model.py`": names.fill("a user's big wheels"),
        "`app.py`": "yes",
    }
    lines = before.split("\n")
    top = next((n for n, line in enumerate(lines) if line.startswith("| room |")), None)
    if top is None:
        raise NotAsExpected(f"{path}: looked for a table that begins with `| room |`, and there is none.")
    for n in range(top, len(lines)):
        if not lines[n].startswith("|"):
            break
        room = lines[n].split("|")[1].strip()
        lines[n] += "---|" if n == top + 1 else f" {cells.get(room, '')} |".replace("  ", " ")
    return "\n".join(lines)


Edit = Callable[[str, str, Names], str]

EDITS: Mapping[str, Edit] = {
    "common/auth.py": _auth,
    "common/events/__init__.py": _events,
    "common/http.py": _http,
    "common/topology.py": _topology,
    "schemathesis.toml": _schemathesis,
    "services/README.md": _map,
    "services/cli/decide.py": _rules,
    "services/cli/system.py": _system,
    "tests/integration/test_replay_listener.py": _day,
    "tests/system/test_doors.py": _doors,
}
"""Files that name every service, and how a new one comes into each. What else would have to, finds it by itself."""


def told(changes: Sequence[Change], names: Names) -> str:
    """What was made, and what to do with it, for a person."""
    made = [f"  + {change.path}" for change in changes if change.before is None]
    changed = [f"  ~ {change.path}" for change in changes if change.before is not None]
    return "\n".join([*made, *changed, "", names.fill(NEXT).strip()])


NEXT = """
Next:
  make check                                     it passes as it is
  .venv/bin/python -m pytest tests/unit/test_fairground_domain.py tests/unit/test_fairground_doors.py \\
      tests/integration/test_fairground.py tests/unit/test_events.py
  make up                                        and then: curl -H 'Authorization: Bearer dev:ada' \\
      -H 'Content-Type: application/json' -d '{"note": "first"}' http://127.0.0.1:8080/api/fairground
Then make it yours: services/fairground/domain.py first, with its sentences in tests/unit/test_fairground_domain.py.
Events are for ever from the day that they are in a log which is kept: until then, change common/events/fairground.py
and tests/corpus/fairground.jsonl as you like.
"""

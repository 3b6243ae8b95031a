"""deploy/Dockerfile without an engine: read, and its steps done under another root."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import msgspec

ROOT = Path(__file__).parent.parent


class Step(msgspec.Struct, frozen=True):
    """An instruction and its arguments, on one line."""

    deed: str
    arguments: str


class Stage(msgspec.Struct):
    """A stage of the build: what it begins with, and what is done."""

    name: str
    of: str
    steps: list[Step]


def stages() -> dict[str, Stage]:
    """The stages of the Dockerfile by name, in order."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "deploy" / "Dockerfile").read_text(), flags=re.MULTILINE)
    found: dict[str, Stage] = {}
    for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines():
        deed, _, arguments = line.strip().partition(" ")
        if deed == "FROM":
            of, _, name = arguments.partition(" AS ")
            found[name] = stage = Stage(name, of, [])
        elif deed:
            stage.steps.append(Step(deed, arguments))
    return found


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a file of the repository into the build; the last pattern that fits decides."""
    sent = True
    for pattern in (ROOT / ".dockerignore").read_text().splitlines():
        if not pattern or pattern.startswith("#"):
            continue
        fits = pattern.removeprefix("!")
        above = [path, *map(str, Path(path).parents)]
        anywhere = fits.removeprefix("**/")
        if any(fnmatch(each, fits) for each in above) or (
            anywhere != fits and any(fnmatch(Path(each).name, anywhere) for each in above)
        ):
            sent = pattern.startswith("!")
    return sent


def sent_files(source: str) -> Iterator[Path]:
    """The files that a COPY of `source` finds, relative to the repository."""
    there = ROOT / source
    for file in sorted(there.rglob("*")) if there.is_dir() else [there]:
        path = file.relative_to(ROOT)
        if file.is_file() and is_sent(str(path)):
            yield path


def copied(step: Step) -> tuple[list[str], str]:
    """What a COPY takes, and to where."""
    *sources, target = [each for each in step.arguments.split() if not each.startswith("--")]
    return sources, target


def build(stage: Stage, root: Path, python: str) -> None:
    """Do the steps of a stage below `root`, with `python` for the one of its image; raises AssertionError."""
    folder = root
    subprocess.run([python, "-m", "venv", root / "usr"], check=True)
    path = f"{root}/usr/bin:/usr/bin:/bin"
    before = stages()[stage.of].steps if stage.of in stages() else []
    for step in (*(each for each in before if each.deed in {"ENV", "WORKDIR"}), *stage.steps):
        if step.deed == "ENV":
            for found in re.findall(r"\bPATH=(\S+):\$PATH", step.arguments):
                path = f"{root}{found}:{path}"
        elif step.deed == "WORKDIR":
            folder = root / step.arguments.lstrip("/")
            folder.mkdir(parents=True, exist_ok=True)
        elif step.deed == "COPY":
            sources, target = copied(step)
            for source in sources:
                for file in sent_files(source):
                    into = folder / target
                    place = into / (file.name if (ROOT / source).is_file() else file.relative_to(source))
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / file, place)
        elif step.deed == "RUN":
            command = re.sub(r"--mount=\S+ ", "", step.arguments)
            command = re.sub(r"(?<=[ =])/(?=opt/|wheels)", f"{root}/", command)
            environment = {"PATH": path, "HOME": os.environ.get("HOME", ""), **pip_variables()}
            done = subprocess.run(
                ["sh", "-ec", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{step.arguments}\n{done.stdout}{done.stderr}"


def pip_variables() -> dict[str, str]:
    """Where pip looks for packages here, and to whom it talks."""
    return {name: value for name, value in os.environ.items() if re.match("(?i)pip_|ssl_|https?_proxy|no_proxy", name)}

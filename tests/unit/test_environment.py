"""Whose login a command uses for what it writes in the name of a service."""

import os
import re
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # psutil ships no types
import pytest

from common.settings import BadSetting
from services.cli.embedded import Running, as_service, secret


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The folder of an embedded system that runs: this process."""
    url = "nats://migrate:its-password@127.0.0.1:4222"
    Running(os.getpid(), psutil.Process().create_time(), url, "postgresql://127.0.0.1:5432/postgres").tell(tmp_path)
    return tmp_path


def test_the_system_that_runs_here_knows_the_passwords_of_its_services(data: Path) -> None:
    password = secret(data, "nats-orders")
    found = as_service("orders", {"HOME": "/"}, data)
    assert found == {"HOME": "/", "BOXOFFICE_ORDERS_NATS_URL": f"nats://orders:{password}@127.0.0.1:4222"}


@pytest.mark.parametrize("name", ["BOXOFFICE_ORDERS_NATS_URL", "BOXOFFICE_ORDERS_NATS_URL_FILE", "BOXOFFICE_NATS_URL"])
def test_what_the_environment_names_comes_first(data: Path, name: str) -> None:
    secret(data, "nats-orders")
    assert as_service("orders", {name: "somewhere"}, data) == {name: "somewhere"}


def test_a_login_that_nobody_named_is_asked_for_and_none_is_made(data: Path) -> None:
    told = "BOXOFFICE_ORDERS_NATS_URL: Required, with user and password, as what orders tells is written as it"
    with pytest.raises(BadSetting, match=re.escape(told)):
        as_service("orders", {}, data)
    with pytest.raises(BadSetting, match=re.escape(told)):
        as_service("orders", {}, data / "nothing")
    assert not (data / "secrets").exists()

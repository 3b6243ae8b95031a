"""Manifests with one service more say of it what they say of the one that it is deployed as, and else what they did."""

from typing import Any

import pytest
import yaml

from common.errors import Invalid
from services.cli.new_deployment import Deployed

DEPLOYED = Deployed("tickets", ["tickets", "orders", "web"])

COMPOSE = """
x-service: &service
  restart: always  # whatever happens
services:
  orders: *service
  tickets:  # doors
    <<: *service
    command: [serve, tickets]
    environment: {BOXOFFICE_TICKETS_NATS_URL_FILE: /run/secrets/tickets_nats_url}
    logging: *service

  # The page.
  web:
    depends_on: [orders, tickets]
"""


def extended(text: str) -> str:
    return DEPLOYED.extended("some.yaml", text, "loyalty")


def added(before: str) -> tuple[list[str], list[Any]]:
    """The lines that are new, and what the documents say then."""
    lines, after = before.split("\n"), extended(before).split("\n")
    for line in lines:
        if "|orders" not in line:  # it has an alternative more
            assert line in after, "nothing is taken away"
            after.remove(line)
    return after, [*yaml.safe_load_all(extended(before))]


def test_a_pair_of_a_mapping_is_followed_by_another() -> None:
    _, [told] = added(COMPOSE.replace("depends_on: [orders, tickets]", "a: b"))
    assert list(told["services"]) == ["orders", "tickets", "loyalty", "web"]
    assert told["services"]["loyalty"] == {
        "restart": "always",
        "command": ["serve", "loyalty"],
        "environment": {"BOXOFFICE_LOYALTY_NATS_URL_FILE": "/run/secrets/loyalty_nats_url"},
        "logging": {"restart": "always"},
    }
    assert told["services"]["tickets"]["command"] == ["serve", "tickets"]


def test_a_list_of_services_has_one_more() -> None:
    assert "depends_on: [orders, tickets, loyalty]" in extended(COMPOSE)


@pytest.mark.parametrize(
    ("before", "lines"),
    [
        ("resources:\n  - orders\n  - tickets  # doors\n  - web", ["  - loyalty  # doors"]),
        (
            "paths:\n  - {path: /api/tickets, to: tickets}\n  - {path: /, to: web}",
            ["  - {path: /api/loyalty, to: loyalty}"],
        ),
        (
            "rules:\n  - to: [{name: tickets}]\n    # why\n    at:\n      - /api/tickets\n\n  - to: [{name: web}]",
            ["  - to: [{name: loyalty}]", "    # why", "    at:", "      - /api/loyalty"],
        ),
        ("run:\n  - |\n    serve tickets\n  - serve web", ["  - |", "    serve loyalty"]),
        ('target: {name: "tickets|orders"}', ['target: {name: "tickets|loyalty|orders"}']),
        ("name: tickets\n---\nname: web\n", ["name: loyalty", "---"]),
        ("host: [tickets.example.org]\nof: tickets", []),
        ("both: [tickets and web]\nneither: [tickety, mytickets]", []),
        ("", []),
    ],
)
def test_what_is_about_it_alone_is_said_of_the_new_one_too(before: str, lines: list[str]) -> None:
    new, _ = added(before)
    assert new == lines


def test_configuration_has_a_line_more_and_patterns_an_alternative() -> None:
    before = (
        "~^/api/tickets(/|$)  tickets;\n~^/(?<of>tickets|orders)$ $of;\nupstream web {}\nupstream tickets_and_web {}"
    )
    after = "~^/api/tickets(/|$)  tickets;\n~^/api/loyalty(/|$)  loyalty;\n~^/(?<of>tickets|loyalty|orders)$ $of;"
    assert DEPLOYED.lines(before, "loyalty") == f"{after}\nupstream web {{}}\nupstream tickets_and_web {{}}"


def test_a_file_of_its_own_is_told_by_its_path() -> None:
    assert [
        path for path in ("a/tickets/b.yaml", "a/tickets.yaml", "tickets-a/b.yaml") if DEPLOYED.is_its_own(path)
    ] == [
        "a/tickets/b.yaml",
        "a/tickets.yaml",
    ]
    assert (
        DEPLOYED.renamed("a/tickets/b.yaml: BOXOFFICE_TICKETS_X", "loyalty") == "a/loyalty/b.yaml: BOXOFFICE_LOYALTY_X"
    )


def test_a_file_that_is_no_yaml_is_not_touched() -> None:
    with pytest.raises(Invalid, match=r"(?s)some\.yaml: .*Nothing was changed"):
        extended("a: [tickets")

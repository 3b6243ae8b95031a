"""What is in deploy/monitoring."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

MONITORING = Path(__file__).parents[1] / "deploy" / "monitoring"

RULES: Mapping[str, Any] = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
DASHBOARD: Mapping[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())

ALERTS: Mapping[str, Any] = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
"""The alerts by name."""


def expressions() -> dict[str, str]:
    """All that Prometheus is asked, by where it stands."""
    found = {f"alert {name}": rule["expr"] for name, rule in ALERTS.items()}
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            found[f"panel {panel['id']} {panel['title']} {target['refId']}"] = target["expr"]
    return found


def names_in(expression: str) -> set[str]:
    """The metrics that an expression names."""
    return set(re.findall(r"\b(?:boxoffice_\w+|process_\w+|up)\b(?!\s*\()", expression))

"""The secrets of a deployment: all that it needs, made once, readable by whom they are for."""

import os
import stat
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from common.rights import MIGRATE, everybody, nats_configuration, postgres_configuration
from common.settings import FILE, PREFIX, load
from services.cli.main import cli
from services.cli.secrets import IN_KUBERNETES, for_compose, for_kubernetes, secrets_in
from services.cli.system import SERVICES
from services.identity.tokens import Issuer


def files_of(user: str, folder: Path) -> dict[str, str]:
    """The variables that name the files of a user, as a container has them."""
    return {f"{PREFIX}{path.name.upper()}{FILE}": str(path) for path in (folder / user).iterdir()}


@pytest.mark.parametrize("service", SERVICES)
def test_each_service_gets_the_settings_it_knows_and_its_own_login(service: str, tmp_path: Path) -> None:
    for_compose(tmp_path, "nats://n0:4222,nats://n1:4222", "postgresql://db:5432/shop?sslmode=require")
    settings = load(SERVICES[service][1], files_of(service, tmp_path), of=service)
    made = secrets_in(tmp_path)
    password = made.nats[service]
    assert settings.nats_url == f"nats://{service}:{password}@n0:4222,nats://{service}:{password}@n1:4222"
    role = f"boxoffice_{service}:{made.postgres[service]}"
    assert settings.database_url == f"postgresql://{role}@db:5432/shop?sslmode=require"
    fields = set(SERVICES[service][1].__struct_fields__)
    assert {path.name for path in (tmp_path / service).iterdir()} <= fields


def test_identity_and_notification_can_work_with_theirs(tmp_path: Path) -> None:
    for_compose(tmp_path)
    identity = load(SERVICES["identity"][1], files_of("identity", tmp_path), of="identity")
    Issuer(identity.signing_key)  # type: ignore[attr-defined]  # of IdentitySettings
    assert len(identity.encryption_secret) >= 32  # type: ignore[attr-defined]  # of IdentitySettings
    notification = load(SERVICES["notification"][1], files_of("notification", tmp_path), of="notification")
    assert len(notification.webhook_secret) >= 32  # type: ignore[attr-defined]  # of NotificationSettings


def test_what_the_servers_ask_for_is_there(tmp_path: Path) -> None:
    for_compose(tmp_path)
    nats = dict(line.split("=", 1) for line in (tmp_path / "nats.env").read_text().splitlines())
    postgres = dict(line.split("=", 1) for line in (tmp_path / "roles.env").read_text().splitlines())
    conf = Path("deploy/nats/nats.conf").read_text()
    for variable in ("NATS_CLUSTER_PASSWORD", "NATS_ROUTES"):
        assert f"${variable}\n" in conf
        assert nats[variable]
    for user in everybody():
        assert f"$NATS_PASSWORD_{user.upper()}," in nats_configuration()
        assert nats[f"NATS_PASSWORD_{user.upper()}"] == secrets_in(tmp_path).nats[user]
        assert f"\\getenv password BOXOFFICE_{user.upper()}_PASSWORD\n" in postgres_configuration()
        assert postgres[f"BOXOFFICE_{user.upper()}_PASSWORD"] == secrets_in(tmp_path).postgres[user]


def test_manifests_for_kubernetes_have_the_same(tmp_path: Path) -> None:
    manifests = {each["metadata"]["name"]: each for each in yaml.safe_load_all(for_kubernetes(tmp_path))}
    for_compose(tmp_path, IN_KUBERNETES)
    users = {f"{what}-{user}" for user in everybody() for what in ("boxoffice", "postgres")}
    assert set(manifests) == {"nats-passwords", "postgres-passwords", *users}
    for user in everybody():
        role = manifests[f"postgres-{user}"]  # as CloudNativePG wants it
        assert (role["type"], role["metadata"]["labels"]) == ("kubernetes.io/basic-auth", {"cnpg.io/reload": "true"})
        assert set(role["stringData"]) == {"username", "password"}
        files = {path.name: path.read_text() for path in (tmp_path / user).iterdir()}
        assert manifests[f"boxoffice-{user}"]["stringData"] == files
    made = secrets_in(tmp_path)
    assert manifests["nats-passwords"]["stringData"] == made.nats_passwords()
    assert manifests["postgres-passwords"]["stringData"]["POSTGRES_PASSWORD"] == made.superuser


def test_a_second_time_changes_nothing_but_what_was_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    asked = ("secrets", "--folder", str(folder), "--format")
    first = CliRunner().invoke(cli, [*asked, "kubernetes"])
    assert first.exit_code == 0
    assert CliRunner().invoke(cli, [*asked, "kubernetes"]).output == first.output
    (folder / "made" / "nats-orders").unlink()
    again = CliRunner().invoke(cli, [*asked, "kubernetes", "-o", str(tmp_path / "out.yaml")])
    assert (again.exit_code, again.output) == (0, "")
    changed = set((tmp_path / "out.yaml").read_text().splitlines()) ^ set(first.output.splitlines())
    assert len(changed) == 4  # the password and the address, before and after


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_no_secret_is_shown_and_only_their_owner_gets_at_them(umask: int, tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    before = os.umask(umask)
    try:
        told = CliRunner().invoke(cli, ["secrets", "--format", "compose", "--folder", str(folder)])
    finally:
        os.umask(before)
    made = secrets_in(folder)
    assert told.exit_code == 0
    assert not any(secret in told.output for secret in (*made.nats.values(), *made.postgres.values()))

    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    assert mode(folder) == mode(folder / "made") == 0o700
    assert {mode(path) for path in (folder / "made").iterdir()} == {0o600}
    assert mode(folder / "nats.env") == mode(folder / "roles.env") == 0o600
    assert (mode(folder / MIGRATE), mode(folder / MIGRATE / "database_url")) == (
        0o755,
        0o444,
    )  # for who is in a container


def test_the_files_for_the_servers_are_what_the_rights_are() -> None:
    mend = "run `boxoffice rights nats > deploy/nats/users.conf` and `rights postgres > deploy/postgres/roles.sql`"
    assert Path("deploy/nats/users.conf").read_text() == nats_configuration(), mend
    assert Path("deploy/postgres/roles.sql").read_text() == postgres_configuration(), mend

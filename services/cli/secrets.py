"""Every secret that a deployment needs: made once, kept in a folder, and given to compose and Kubernetes from there."""

import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from common.rights import everybody, password_variable, role_of
from services.cli.embedded import kept, with_login
from services.identity.tokens import new_signing_key

FOLDER = Path("deploy/secrets")
NODES = ("nats-0", "nats-1", "nats-2")
"""The hosts of the nodes of NATS in compose."""
IN_COMPOSE = ",".join(f"nats://{node}:4222" for node in NODES)
IN_KUBERNETES = "nats://nats:4222"
DATABASE_URL = "postgresql://postgres:5432/boxoffice"
MADE = "made"
"""In the folder: a file for each secret. All else there is written anew from these."""
CLUSTER_USER = "boxoffice"


class Secrets(msgspec.Struct, frozen=True):
    """What nobody else may know. `nats` and `postgres`: the password of each user.

    `own`: what a service has beside these, by the setting that it is.
    """

    nats: Mapping[str, str]
    cluster: str
    postgres: Mapping[str, str]
    superuser: str
    own: Mapping[str, Mapping[str, str]]

    def nats_passwords(self) -> dict[str, str]:
        """The variables of the servers' environment that deploy/nats/ names."""
        users = {f"NATS_PASSWORD_{user.upper()}": password for user, password in self.nats.items()}
        return {**users, "NATS_CLUSTER_PASSWORD": self.cluster}

    def postgres_passwords(self) -> dict[str, str]:
        """The variables of psql's environment that deploy/postgres/ names."""
        return {password_variable(user): password for user, password in self.postgres.items()}

    def role(self, user: str) -> dict[str, str]:
        """The role of a user as CloudNativePG wants it."""
        return {"username": role_of(user), "password": self.postgres[user]}

    def settings_of(self, user: str, nats_url: str, database_url: str) -> dict[str, str]:
        """The settings of a service, or of who migrates, that are secrets, with these addresses."""
        return {
            "nats_url": with_login(nats_url, user, self.nats[user]),
            "database_url": with_login(database_url, role_of(user), self.postgres[user]),
            **self.own.get(user, {}),
        }


def password() -> str:
    """One that needs no quotes anywhere: it begins with a letter, else nats-server would take some for numbers."""
    return "p" + secrets.token_urlsafe(32)


def secrets_in(folder: Path) -> Secrets:
    """The secrets of a folder; those that are not there yet are made. To change one, change or delete its file."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def one(name: str, make: Callable[[], str] = password) -> str:
        return kept(folder / MADE / name, make)

    return Secrets(
        nats={user: one(f"nats-{user}") for user in everybody()},
        cluster=one("nats-cluster"),
        postgres={user: one(f"postgres-{user}") for user in everybody()},
        superuser=one("postgres-superuser"),
        own={
            "notification": {"webhook_secret": one("webhook-secret")},
            "identity": {
                "signing_key": one("signing-key", new_signing_key),
                "encryption_secret": one("encryption-secret"),
                "oidc_client_secret": one("oidc-client-secret", str),  # theirs, who know people; empty without one
            },
        },
    )


def for_compose(folder: Path, nats_url: str = IN_COMPOSE, database_url: str = DATABASE_URL) -> None:
    """Write the files that deploy/compose.yaml mounts and reads.

    What a container reads is readable by everybody, since compose keeps owner and mode of a file and the user in a
    container is nobody's on the host; the folder around all lets only its owner through.
    """
    made = secrets_in(folder)
    routes = ",".join(f"nats://{CLUSTER_USER}:{made.cluster}@{node}:6222" for node in NODES)
    write(folder / "nats.env", lines({**made.nats_passwords(), "NATS_ROUTES": f"[{routes}]"}), mode=0o600)
    write(folder / "roles.env", lines({**made.postgres_passwords(), "PGPASSWORD": made.superuser}), mode=0o600)
    write(readable(folder / "postgres") / "password", made.superuser)
    for user in everybody():
        for name, value in made.settings_of(user, nats_url, database_url).items():
            write(readable(folder / user) / name, value)


def for_kubernetes(folder: Path, nats_url: str = IN_KUBERNETES, database_url: str = DATABASE_URL) -> str:
    """Manifests of the Secrets that k8s/ mounts."""
    made = secrets_in(folder)
    manifests = [
        manifest("nats-passwords", made.nats_passwords()),
        manifest("postgres-passwords", {"POSTGRES_PASSWORD": made.superuser, **made.postgres_passwords()}),
        *(manifest(f"boxoffice-{user}", made.settings_of(user, nats_url, database_url)) for user in everybody()),
        *(manifest(f"postgres-{user}", made.role(user), CNPG) for user in everybody()),
    ]
    return "---\n".join(manifests)


CNPG = '  labels: {cnpg.io/reload: "true"}\ntype: kubernetes.io/basic-auth\n'
"""What the operator of CloudNativePG asks of the password of a role, and how it notices another one."""


def manifest(name: str, data: Mapping[str, str], kind: str = "type: Opaque\n") -> str:
    """A Secret as YAML, of which JSON is a part."""
    values = "".join(f"  {key}: {json.dumps(value)}\n" for key, value in data.items())
    return f"apiVersion: v1\nkind: Secret\nmetadata:\n  name: {name}\n{kind}stringData:\n{values}"


def lines(variables: Mapping[str, str]) -> str:
    """As compose reads an `env_file`."""
    return "".join(f"{name}={value}\n" for name, value in variables.items())


def readable(folder: Path) -> Path:
    """A folder that everybody who gets at it may read, whatever the umask of who makes it."""
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    return folder


def write(path: Path, text: str, mode: int = 0o444) -> None:
    """Write a file whole, with this mode from its beginning."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.touch(mode=0o600)
    fresh.write_text(text)
    fresh.chmod(mode)
    fresh.rename(path)

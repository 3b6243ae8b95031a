"""What the manifests say to start is started, as processes here: NATS on three nodes, a service, and how they end."""

import asyncio
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest
import yaml

from common.rights import everybody, role_of
from services.cli.embedded import make_roles, with_login
from services.cli.secrets import for_kubernetes, secrets_in
from services.cli.servers import PostgresServer
from tests.cluster import free_ports
from tests.harness import eventually
from tests.manifests import Object, container, environment, mounted, of_kind, pod, rendered, workloads

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed: it renders k8s/")

PROGRAMS = Path(sys.executable).parent
NODES = ("nats-0", "nats-1", "nats-2")
PID = "/tmp/nats.pid"  # noqa: S108  # in a pod
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


class Pod:
    """The container of a workload as a process, on ports of its own: `at` tells which, by those that it names."""

    def __init__(
        self, workload: Object, command: Sequence[str], variables: Mapping[str, str], at: Mapping[int, int]
    ) -> None:
        self.spec, self.grace = container(workload), pod(workload)["terminationGracePeriodSeconds"]
        self.at = at
        self._command = command
        self._variables = {**variables, "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
        self._named = {port["name"]: port["containerPort"] for port in self.spec["ports"]}

    async def start(self, log: Path) -> None:
        with log.open("ab") as output:
            self.process = await asyncio.create_subprocess_exec(
                *self._command, env=self._variables, stdout=output, stderr=output
            )

    async def answer(self, probe: str) -> int:
        """What a probe is told: a status of HTTP, 0 if nobody answers."""
        asked = self.spec[probe]["httpGet"]
        async with httpx.AsyncClient() as http:
            try:
                url = f"http://127.0.0.1:{self.at[self._named[asked['port']]]}{asked['path']}"
                return (await http.get(url, timeout=self.spec[probe]["timeoutSeconds"])).status_code
            except httpx.TransportError:
                return 0

    async def is_up(self) -> None:
        """Wait until all probes are content, the one of the start for as long as Kubernetes would."""
        start = self.spec["startupProbe"]
        await eventually(
            lambda: self.answer("startupProbe"), 200, within=start["periodSeconds"] * start["failureThreshold"]
        )
        for probe in PROBES:
            await eventually(lambda probe=probe: self.answer(probe), 200, within=60)  # type: ignore[misc]  # its default is a str

    async def ended(self) -> int:
        """SIGTERM; the exit code, which has to come before Kubernetes would kill it."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), self.grace)

    async def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


def node(
    name: str, objects: Sequence[Object], passwords: Mapping[str, str], home: Path, at: Mapping[str, Mapping[int, int]]
) -> Pod:
    """A node of NATS as the StatefulSet starts it, with its files and ports elsewhere."""
    nats = workloads(objects)["nats"]
    folder, spec = home / name, container(nats)
    (folder / "data").mkdir(parents=True)
    (config,) = [each["data"] for key, each in of_kind(objects, "ConfigMap").items() if key.startswith("nats-config")]
    for file, text in config.items():
        text = re.sub(r"port: (\d+)", lambda found: f"port: {at[name][int(found[1])]}", text)
        text = text.replace("store_dir: /data", f"store_dir: {folder}/data").replace(PID, f"{folder}/nats.pid")
        (folder / file).write_text(text)
    variables = {**environment(nats, objects, {"nats-passwords": passwords}), "NATS_SERVER_NAME": name}
    routes = variables["NATS_ROUTES"].replace("$(NATS_CLUSTER_PASSWORD)", passwords["NATS_CLUSTER_PASSWORD"])
    domain = nats["spec"]["serviceName"]
    variables["NATS_ROUTES"] = re.sub(
        rf"([a-z0-9-]+)\.{domain}:(\d+)", lambda found: f"127.0.0.1:{at[found[1]][int(found[2])]}", routes
    )
    args = [word.replace("/etc/nats", str(folder)) for word in spec["args"]]
    return Pod(nats, [str(PROGRAMS / "nats-server"), *args], variables, at[name])


@asynccontextmanager
async def running(pods: Mapping[str, Pod], home: Path) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for name, each in pods.items():
            await each.start(home / f"{name}.log")
            stack.push_async_callback(each.kill)
        yield


async def test_what_kubernetes_starts_comes_up_answers_its_probes_and_ends_in_time(home: Path) -> None:
    objects = rendered("prod")
    secrets = {
        each["metadata"]["name"]: each["stringData"] for each in yaml.safe_load_all(for_kubernetes(home / "made"))
    }
    ports = iter(free_ports(11))
    at = {name: {port: next(ports) for port in (4222, 6222, 8222)} for name in NODES}
    nodes = {name: node(name, objects, secrets["nats-passwords"], home, at) for name in NODES}
    postgres = PostgresServer(home / "postgres")
    await postgres.start()
    try:
        await make_roles(postgres.url, secrets_in(home / "made").postgres)
        async with running({"nats-0": nodes["nats-0"]}, home):
            await eventually(lambda: nodes["nats-0"].answer("livenessProbe"), 200)
            assert await nodes["nats-0"].answer("startupProbe") == 503, (
                "one of three is no cluster, and no reason to restart"
            )
        async with running(nodes, home):
            for each in nodes.values():
                await each.is_up()
            for user in everybody():  # the addresses that the Secrets have lead here
                secret = secrets[f"boxoffice-{user}"]
                secret["nats_url"] = secret["nats_url"].replace("nats:4222", f"127.0.0.1:{at['nats-0'][4222]}")
                secret["database_url"] = with_login(
                    postgres.url, role_of(user), secrets_in(home / "made").postgres[user]
                )
            migrate = next(iter(of_kind(objects, "Job").values()))
            await done(migrate, objects, secrets, home)
            orders = service("orders", objects, secrets, home, {8080: next(ports), 9090: next(ports)})
            async with running({"orders": orders}, home):
                await orders.is_up()
                await told_to_go(nodes["nats-2"], home / "nats-2")
                # Consumers that it led have another leader a moment later.
                await eventually(lambda: orders.answer("readinessProbe"), 200)
                for name in ("nats-0", "nats-1"):
                    await nodes[name].kill()
                await eventually(lambda: orders.answer("readinessProbe"), 503)
                assert await orders.answer("livenessProbe") == 200, "a restart brings no NATS back"
                assert await orders.ended() == 0
    finally:
        await postgres.stop()


def variables_of(
    workload: Object, objects: Sequence[Object], secrets: Mapping[str, Mapping[str, str]], home: Path
) -> dict[str, str]:
    """The variables of a container, with what is mounted in a folder here."""
    variables = environment(workload, objects, secrets)
    for path, value in mounted(workload, secrets).items():
        here = home / workload["metadata"]["name"] / Path(path).name
        here.parent.mkdir(exist_ok=True)
        here.write_text(value)
        variables = {name: str(here) if said == path else said for name, said in variables.items()}
    return variables


def service(
    name: str, objects: Sequence[Object], secrets: Mapping[str, Mapping[str, str]], home: Path, at: Mapping[int, int]
) -> Pod:
    """A service as its Deployment starts it."""
    deployment = workloads(objects)[name]
    variables = variables_of(deployment, objects, secrets, home)
    variables |= {"BOXOFFICE_HOST": "127.0.0.1"}
    variables |= {key: str(at[int(variables[key])]) for key in ("BOXOFFICE_PORT", "BOXOFFICE_METRICS_PORT")}
    return Pod(deployment, [str(PROGRAMS / "boxoffice"), *container(deployment)["args"]], variables, at)


async def done(job: Object, objects: Sequence[Object], secrets: Mapping[str, Mapping[str, str]], home: Path) -> None:
    """Run a Job to its end."""
    variables = {**variables_of(job, objects, secrets, home), "PATH": os.environ["PATH"]}
    process = await asyncio.create_subprocess_exec(
        str(PROGRAMS / "boxoffice"),
        *container(job)["args"],
        env=variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()


async def told_to_go(each: Pod, folder: Path) -> None:
    """What Kubernetes does with a pod that is to go: preStop, and SIGTERM at once after it."""
    words = [word.replace(PID, f"{folder}/nats.pid") for word in each.spec["lifecycle"]["preStop"]["exec"]["command"]]
    process = await asyncio.create_subprocess_exec(*words, env={"PATH": f"{PROGRAMS}:{os.environ['PATH']}"})
    assert await process.wait() == 0
    assert await each.ended() == 0
    said = folder.with_suffix(".log").read_text()
    lame, term, end = (
        said.find(line) for line in ("Entering lame duck", 'Trapped "terminated"', "Initiating Shutdown")
    )
    assert -1 < lame < term < end, "SIGTERM does not cut short what preStop began"

"""docker-compose.yml: what it names exists, and where there is a container engine it runs, from POST to SELECT and through losses."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import threading
import time
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path

import duckdb
import httpx
import pytest
import yaml

from pipeline.__main__ import _parser
from pipeline.settings import PREFIX, Settings, load
from pipeline.stores.extensions import extension_path
from pipeline.worker import semantics_of
from tests.harness import eventually, free_port

ROOT = Path(__file__).parents[2]
SETUP = "data-permissions"
BOOTSTRAP = "simulator-token"
ONCE = (SETUP, BOOTSTRAP, "prometheus-token")
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


def plain(text: str) -> str:
    """What compose makes of a text where no variable is set."""
    return VARIABLE.sub(lambda found: found[2], text).replace("$$", "$")


@pytest.fixture(scope="module")
def services() -> dict[str, dict]:
    return yaml.safe_load(plain((ROOT / "docker-compose.yml").read_text()))["services"]


@pytest.fixture(scope="module")
def ours(services) -> dict[str, dict]:
    """The services that run our image."""
    return {name: service for name, service in services.items() if service["image"] == "telemetry-pipeline"}


def test_every_role_has_its_service(services):
    roles = {"api", "worker", "notifier", "maintenance", "simulator", "notebook", "prometheus", "grafana"}
    assert set(services) == {"redis", *ONCE, *roles}
    assert services["worker"]["deploy"]["replicas"] == 3 and services["notebook"]["profiles"] == ["notebook"]
    assert not any("container_name" in service for service in services.values())  # a name would forbid --scale


def test_every_command_is_one_of_the_command_line(ours):
    for name in ours.keys() - {SETUP}:
        command = ours[name]["command"]
        _parser().parse_args(shlex.split(command) if isinstance(command, str) else command)


def test_every_variable_is_a_setting_and_its_default_is_valid(services, monkeypatch):
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    for service in services.values():
        told = {name: str(value) for name, value in service.get("environment", {}).items() if name.startswith(PREFIX)}
        assert {name.removeprefix(PREFIX).lower() for name in told} <= Settings.model_fields.keys()
        with monkeypatch.context() as patch:
            for name, value in told.items():
                patch.setenv(name, value)
            semantics_of(load())
    written = (ROOT / "docker-compose.yml").read_text()
    for name, shown in re.findall(r"^  (PIPELINE_\w+): \$\{(\w+):-", written, re.MULTILINE):
        assert name == shown  # who sets it outside sets it inside


def test_one_service_builds_the_image_that_all_share(services, ours):
    assert [name for name, service in ours.items() if "build" in service] == [SETUP]
    assert all(SETUP in service["depends_on"] for name, service in ours.items() if name not in (SETUP, "simulator"))
    stages = re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert {service["build"]["target"] for service in services.values() if "build" in service} <= set(stages)


def test_services_wait_for_what_they_need_and_say_how_they_are(services):
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            assert how["condition"] != "service_healthy" or "healthcheck" in services[other], f"{name} waits for {other}"
        assert service["restart"] == ("no" if name in ONCE else "unless-stopped")
        probe = service.get("healthcheck", {}).get("test", [])
        assert probe or name in (*ONCE, "simulator")
        if probe[:3] == ["CMD", "python", "-c"]:
            ast.parse(probe[3])


def test_no_service_has_more_rights_than_it_needs(services):
    for name, service in services.items():
        assert service["read_only"] and service["init"] and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert name == SETUP or (service["user"] in ("1000:1000", "redis", "nobody", "472") and "cap_add" not in service)
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def holders(services, volume: str) -> dict[str, list[str]]:
    found = {name: [each for each in service.get("volumes", ()) if each.split(":")[0] == volume] for name, service in services.items()}
    return {name: mounts for name, mounts in found.items() if mounts}


def test_the_api_asks_for_tokens_and_each_client_alone_is_given_its_own(services, monkeypatch):
    """Made at random when it starts: no secret is in the file, in a command line or in an environment."""
    for name, value in services["api"]["environment"].items():
        monkeypatch.setenv(name, str(value))
    assert load().auth_required
    assert re.search(r"tp_[0-9a-f]|PIPELINE_TOKEN|PIPELINE_AUTH", (ROOT / "docker-compose.yml").read_text()) is None
    for client in ("simulator", "prometheus"):
        mount = f"{client}-token:/run/token"
        made = {SETUP: [f"{client}-token:/run/{client}-token"], f"{client}-token": [mount], client: [f"{mount}:ro"]}
        assert holders(services, f"{client}-token") == made
    made, used = _parser().parse_args(services[BOOTSTRAP]["command"]), _parser().parse_args(shlex.split(services["simulator"]["command"]))
    assert made.keep and made.scope == ["ingest"] and made.file == used.token_file
    assert services["simulator"]["depends_on"][BOOTSTRAP] == {"condition": "service_completed_successfully"}


def test_only_our_roles_reach_redis(services):
    """It has no password; the simulator and the notebook do not share a network with it."""
    assert {name for name, service in services.items() if "inside" not in service["networks"]} == {"simulator", "notebook", "grafana"}
    assert {name for name, service in services.items() if "door" in service["networks"]} == {"api", "simulator"}
    assert services["notebook"]["networks"] == ["notebook"] and "ports" not in services["redis"]


def test_redis_keeps_what_was_accepted(services):
    command = services["redis"]["command"]
    assert "--appendonly yes" in command and "--maxmemory-policy noeviction" in command
    assert services["redis"]["volumes"] == ["redis:/data"]


def test_the_image_is_made_of_files_that_are_there_and_may_be_sent():
    dockerfile, project = (ROOT / "Dockerfile").read_text(), tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    copied = {name for line in re.findall(r"^COPY (?!--from)(.+)$", dockerfile, re.MULTILINE) for name in line.split()[:-1]}
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == sent and all((ROOT / name).exists() for name in copied)
    for entry in re.findall(r'^ENTRYPOINT \["(\w+)"\]$', dockerfile, re.MULTILINE):
        assert entry in project["scripts"] or entry == "jupyter"
    assert all(extra in project["optional-dependencies"] for extra in re.findall(r"'\.\[(\w+)\]'", dockerfile))


# ---- the real thing ------------------------------------------------------------------------------------------------------------


def _engine() -> str | None:
    """Why there is no engine to run this on, or None."""
    if shutil.which("docker") is None:
        return "docker is not on PATH"
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        except subprocess.TimeoutExpired:
            return f"{' '.join(command)}: no answer"
        if done.returncode:
            return f"{' '.join(command)}: {(done.stderr.strip().splitlines() or ['it failed'])[-1]}"
    return None


class Compose:
    """One project of its own: name, image, port and data folder."""

    def __init__(self, data: Path) -> None:
        self.name = f"telemetry-test-{uuid.uuid4().hex[:8]}"
        self.data = data
        self.port = free_port()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith((PREFIX, "HOST_", "SIMULATOR_"))},
            "PIPELINE_IMAGE": self.name,
            "PIPELINE_API_PORT": str(self.port),
            "PIPELINE_IDLE_AFTER_SECONDS": "8",
            "PIPELINE_WINDOW_SECONDS": "5",
            "HOST_DATA": str(data),
            "HOST_UID": str(os.getuid() or 1000),
            "HOST_GID": str(os.getgid() or 1000),
            "SIMULATOR_ARGS": "--devices 4",
        }

    def __call__(self, *arguments: str, timeout: float = 120) -> str:
        command = ["docker", "compose", "-p", self.name, *arguments]
        options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": timeout}
        done = subprocess.run(command, cwd=ROOT, env=self.environment, **options)
        assert done.returncode == 0, f"{' '.join(arguments)}:\n{done.stderr[-2000:]}"
        return done.stdout

    def up(self, *arguments: str, timeout: float = 120) -> None:
        self("up", "--detach", "--wait", *arguments, timeout=timeout)

    def inspect(self, container: str, what: str) -> str:
        command = ["docker", "inspect", "-f", what, f"{self.name}-{container}"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    def holders(self) -> list[str]:
        """The worker that holds each partition."""
        text = self("exec", "-T", "redis", "sh", "-c", "for p in $(seq 0 15); do redis-cli hget lease:{$p} owner; done")
        return [owner for owner in text.split() if owner]

    def books(self) -> dict:
        command = ["docker", "compose", "-p", self.name, "run", "--rm", "-T", "worker", "books"]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        return json.loads(done.stdout.splitlines()[-1])

    def select(self, query: str) -> list[tuple]:
        """Ask on the host, with plain DuckDB and the file that the containers have written."""
        with duckdb.connect(self.data / "catalog.duckdb", read_only=True) as connection:
            connection.execute(f"LOAD '{extension_path()}'")
            connection.execute(f"SET VARIABLE lake = '{self.data / 'lake'}'")
            return connection.execute(query).fetchall()


@pytest.fixture(scope="module")
def compose(tmp_path_factory) -> Iterator[Compose]:
    if reason := _engine():
        pytest.skip(f"no container engine here: {reason}")
    data = tmp_path_factory.mktemp("compose") / "data"
    data.mkdir()
    compose = Compose(data)
    try:
        yield compose
    finally:
        compose("--profile", "notebook", "down", "--volumes", "--timeout", "20")
        subprocess.run(["docker", "rmi", "--force", compose.name], capture_output=True, timeout=60)


class Poster:
    """Posts one event every 50 ms from the host, and counts those that were accepted."""

    def __init__(self, compose: Compose) -> None:
        token = compose("exec", "-T", "worker", "telemetry", "tokens", "create", "--name", "poster", "--scope", "ingest").strip()
        self._headers = {"Authorization": f"Bearer {token}"}
        self._url = f"http://127.0.0.1:{compose.port}/v1/events"
        eventually(lambda: httpx.post(self._url, headers=self._headers).status_code == 422, 10, "the API knows the token")  # an empty body
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.accepted: list[int] = []
        self.other: list[object] = []

    def __enter__(self) -> Poster:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        with httpx.Client(timeout=10, headers=self._headers) as client:
            while not self._stop.wait(0.05):
                number += 1
                event = {"device": f"host-{number % 40}", "metric": "probe", "value": number, "timestamp": time.time_ns() // 1_000_000}
                answer = client.post(self._url, json=event, headers={"Idempotency-Key": f"{number}"})
                self.accepted.append(number) if answer.status_code == 202 else self.other.append(answer.text)


def test_from_post_to_select_through_a_kill_a_scaling_and_a_restart(compose):
    """Nothing that was accepted is lost or counted twice: the events of the host by SELECT, all of them by the books."""
    compose.up("--build", timeout=400)
    with Poster(compose) as poster:
        # A worker dies; its container starts again, and it takes its share.
        compose("exec", "-T", "--index", "2", "worker", "sh", "-c", "kill -9 -1 || true")
        eventually(lambda: compose.inspect("worker-2", "{{.RestartCount}} {{.State.Running}}") == "1 true", 20, "worker-2 starts again")
        again = compose.inspect("worker-2", "{{.Config.Hostname}}")
        eventually(lambda: any(owner.startswith(again) for owner in compose.holders()), 20, "worker-2 holds partitions again")
        compose.up("--scale", "worker=5")
        eventually(lambda: len(set(compose.holders())) == 5 and len(compose.holders()) == 16, 20, "five workers share the partitions")
        eventually(lambda: compose.select("FROM aggregates WHERE device = 'host-1'") != [], 40, "a row of the host")
    assert len(poster.accepted) > 100 and poster.other == []
    assert "simulator" in compose("logs", "--no-color", "--tail", "3", "simulator")

    compose("down")
    compose.up("--scale", "worker=2", "--scale", "simulator=0")
    eventually(lambda: compose.books()["in_flight"] == 0, 60, "every window is closed")
    books = compose.books()
    assert books["balanced"] and books["accepted"] > len(poster.accepted)
    [found] = compose.select("SELECT sum(count), sum(sum) FROM aggregates WHERE metric = 'probe' AND device LIKE 'host-%'")
    assert found == (len(poster.accepted), sum(poster.accepted))
    [(total,)] = compose.select("SELECT sum(count) FROM aggregates")
    assert total == books["aggregated"] + books["late"]


def test_what_is_written_belongs_to_the_user_that_was_named(compose):
    assert {path.stat().st_uid for path in (compose.data / "lake").rglob("*")} == {int(compose.environment["HOST_UID"])}
    assert compose.data.stat().st_uid == os.getuid()


def test_the_notebooks_run_and_cannot_change_the_lake(compose):
    compose.environment["NOTEBOOK_PORT"] = str(free_port())
    compose("--profile", "notebook", "up", "--detach", "--build", "--wait", "notebook", timeout=400)
    try:
        run = ["exec", "-T", "notebook", "jupyter", "nbconvert", "--to", "markdown", "--execute", "--stdout"]
        for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
            assert "host-" in compose(*run, f"/app/notebooks/{notebook.name}", timeout=200)
        assert "Read-only" in compose("exec", "-T", "notebook", "sh", "-c", "touch /app/data/x 2>&1 || true")
    finally:
        compose("--profile", "notebook", "rm", "--stop", "--force", "notebook")
        subprocess.run(["docker", "rmi", "--force", f"{compose.name}-notebook"], capture_output=True, timeout=60)

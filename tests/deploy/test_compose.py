"""docker-compose.yml without a container engine: its commands run as processes, from an empty database until ready."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from ruamel.yaml import YAML

from launcher.ports import free_port
from tests.support.waiting import CEILING_SECONDS, wait_until

ROOT = Path(__file__).parents[2]
ONE_SHOT = {"migrate", "admin-key"}
STORES = {"postgres", "broker"}
SECRETS = {"AMAML_DATABASE_PASSWORD": "d4t4", "AMAML_BROKER_PASSWORD": "br0k3r"}

EVERYWHERE = "0.0.0.0"

Services = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def services() -> Services:
    """The services as the engine sees them: variables filled in, anchors merged."""
    text = (ROOT / "docker-compose.yml").read_text()
    text = re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: SECRETS[found[1]], text)
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: found[2], text)
    assert "${" not in text
    return YAML(typ="safe").load(text)["services"]  # type: ignore[no-any-return]


class Machine:
    """Runs services' commands here: this environment's Python, the stores given by URL, a free port instead of 8000."""

    def __init__(self, services: Services, folder: Path, database_url: str, broker_url: str) -> None:
        self.services, self.folder, self.port = services, folder, free_port()
        self.stores = {"AMAML_DATABASE_URL": database_url, "AMAML_BROKER_URL": broker_url}

    def environment(self, name: str) -> dict[str, str]:
        declared = self.services[name]["environment"]
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("AMAML_")}
        here = {**self.stores, "AMAML_HOME": str(self.folder)}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {
            **inherited,
            "PATH": path,
            "TMPDIR": str(self.folder),
            **{key: here.get(key, value) for key, value in declared.items()},
        }

    def argv(self, command: list[str]) -> list[str]:
        return [part.replace("8000", str(self.port)).replace(EVERYWHERE, "127.0.0.1") for part in command]

    def run(self, name: str) -> None:
        done = subprocess.run(
            self.argv(self.services[name]["command"]),
            env=self.environment(name),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=CEILING_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    @contextmanager
    def running(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        with (self.folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                self.argv(self.services[name]["command"]),
                env=self.environment(name),
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            try:
                yield process
            finally:
                process.terminate()
                # uvicorn ends in good order and then by the signal it was sent
                assert process.wait(CEILING_SECONDS) in {0, -signal.SIGTERM}, self.log(name)

    def is_healthy(self, name: str) -> bool:
        kind, *command = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        checked = subprocess.run(
            self.argv(command),
            env=self.environment(name),
            cwd=ROOT,
            capture_output=True,
            timeout=CEILING_SECONDS,
            check=False,
        )
        return checked.returncode == 0

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()


@pytest.mark.processes
def test_from_an_empty_database_to_ready(
    services: Services, tmp_path: Path, empty_database_url: str, broker_url: str
) -> None:
    machine = Machine(services, tmp_path, empty_database_url, broker_url)
    for name in ["migrate", "admin-key"]:
        machine.run(name)
        machine.run(name)  # an engine runs them at each `up`
    assert not machine.is_healthy("api")
    assert not machine.is_healthy("worker")
    with ExitStack() as running:
        for name in ["api", "worker"]:
            running.enter_context(machine.running(name))
        wait_until(lambda: is_ready(f"http://127.0.0.1:{machine.port}/readyz"))
        assert machine.is_healthy("api")
        assert machine.is_healthy("worker")
        key = (tmp_path / "admin.key").read_text().strip()
        answer = httpx2.get(
            f"http://127.0.0.1:{machine.port}/v1/jobs",
            headers={"Authorization": f"Bearer {key}"},
            timeout=CEILING_SECONDS,
        )
        assert answer.status_code == 200, answer.text


def is_ready(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=CEILING_SECONDS).status_code == 200
    except httpx2.TransportError:
        return False


def test_the_worker_on_a_gpu_is_the_worker_with_a_gpu_reserved(services: Services) -> None:
    gpu = dict(services["worker-gpu"])
    (reserved,) = gpu.pop("deploy")["resources"]["reservations"]["devices"]
    assert reserved == {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}
    assert gpu.pop("profiles") == ["gpu"]
    assert gpu == services["worker"]


def test_the_documented_worker_of_a_second_gpu_differs_in_the_gpu_alone(services: Services) -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    (block,) = [found for found in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "worker-gpu-1" in found]
    second = YAML(typ="safe").load(block.replace("!override", ""))["services"]["worker-gpu-1"]
    assert second.pop("extends") == {"file": "docker-compose.yml", "service": "worker-gpu"}
    (reserved,) = second.pop("deploy")["resources"]["reservations"]["devices"]
    assert not second
    (first,) = services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert reserved == {**first, "device_ids": ["1"]}


def test_no_secret_is_in_the_file() -> None:
    """Wherever a password is meant, a variable without a default stands."""
    text = (ROOT / "docker-compose.yml").read_text()
    for line in text.splitlines():
        if re.search(r"password|requirepass|_AUTH|://\S*@", line, re.IGNORECASE) and not line.lstrip().startswith("#"):
            assert re.search(r"\$\{AMAML_\w+_PASSWORD:\?", line) or line.strip() == "- --requirepass", line


def test_everything_waits_for_what_it_needs(services: Services) -> None:
    def needs(name: str) -> set[str]:
        direct = set(services[name].get("depends_on", {}))
        return direct.union(*(needs(other) for other in direct))

    assert needs("migrate") == {"postgres"}
    assert needs("api") == {"postgres", "migrate", "admin-key"}
    assert needs("worker") == {"postgres", "migrate", "admin-key", "broker"}
    for service in services.values():
        for other, how in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if other in ONE_SHOT else "service_healthy"
            assert how == {"condition": wanted}
            assert other in ONE_SHOT or "healthcheck" in services[other]


def test_what_runs_on_is_restarted_and_checked(services: Services) -> None:
    for name, service in services.items():
        assert ("healthcheck" in service) == (name not in ONE_SHOT)
        assert service.get("restart") == (None if name in ONE_SHOT else "unless-stopped")


def test_the_broker_loses_nothing_it_was_given(services: Services) -> None:
    command = services["broker"]["command"]
    assert command[command.index("--appendonly") + 1] == "yes"
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
    assert command[command.index("--requirepass") + 1] == SECRETS["AMAML_BROKER_PASSWORD"]


def test_nothing_listens_beyond_the_host(services: Services) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:8000:8000"]

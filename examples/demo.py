"""A demonstration of the whole service on real data: `make demo`.

It starts a separate stack (temporary home, free port), submits a job on MovieLens-100K over HTTP with the `amaml` command, and
downloads, verifies and uses its initialization on users that the job never saw. It stops everything that it has started,
whatever happens. The exit status is 0 only if all of it worked and the learned start is better than a random one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import NoReturn, Self
from urllib.parse import urlsplit

from launcher.children import Child, Command
from launcher.log import Log

HERE = Path(__file__).parent
AMAML = str(Path(sys.executable).with_name("amaml"))
WHEEL = "recbole-1.2.1-py3-none-any.whl"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
RATINGS = "recbole/dataset_example/ml-100k/ml-100k.inter"
START_SECONDS = 120
STEPS = 7
BEGAN = time.monotonic()


class Failed(Exception):
    """A step failed; the message says which one and why."""


def main() -> int:
    sys.stdout.reconfigure(line_buffering=True)  # so that our lines and the commands' stay in order in a pipe too
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    folder = Path(tempfile.mkdtemp(prefix="amaml-demo-"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AMAML_")}
    environment |= {"AMAML_HOME": str(folder / "home"), "AMAML_PORT": "0"}
    code = 1
    with Stack(folder, environment) as stack:
        try:
            say(1, "start PostgreSQL, Valkey, the API and a worker")
            print(f"  ready at {stack.start()}")
            run_job(folder, environment)
            code = 0
        except Failed as failure:
            print(f"FAILED: {failure}", file=sys.stderr)
            stack.show_last_lines()
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            code = 130
        say(7, "stop everything, and check that nothing is left")
    left = leftovers(folder, stack.url)
    if left:
        print("FAILED: left behind:", *left, sep="\n  ", file=sys.stderr)
        code = code or 1
    else:
        print("  no process, no open port, no temporary folder")
    print(f"{'done' if code == 0 else 'not done'} after {time.monotonic() - BEGAN:.0f} s")
    return code


class Stack:
    """`python -m launcher up` as a child; at the end of the block it is stopped and its folder removed."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.url = ""
        self._folder = folder
        self._log = folder / "stack.log"
        self._lines = self._log.open("w")
        command = Command(
            "stack",
            [sys.executable, "-m", "launcher", "up"],
            environment,
            stop_seconds=25.0,
            death_signal=signal.SIGTERM,  # even if this process is killed, the stack ends in order
        )
        self._child = Child(command, Log(self._lines))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        ignore_signals()
        self._child.stop()
        self._lines.close()
        shutil.rmtree(self._folder)

    def start(self) -> str:
        """Starts it and returns its address, which the launcher writes when /readyz answers 200."""
        self._child.start()
        address = self._folder / "home" / "url"
        deadline = time.monotonic() + START_SECONDS
        while not address.exists():
            if self._child.status() is not None:
                raise Failed("the stack ended before it was ready")
            if time.monotonic() > deadline:
                raise Failed(f"the stack wasn't ready within {START_SECONDS} s")
            time.sleep(0.1)
        self.url = address.read_text().strip()
        return self.url

    def show_last_lines(self) -> None:
        lines = [line for line in self._log.read_text().splitlines() if "path=/readyz" not in line]
        print("the stack's last lines:", *lines[-30:], sep="\n  ", file=sys.stderr)


def run_job(folder: Path, environment: Mapping[str, str]) -> None:
    say(2, "fetch MovieLens-100K (inside the package recbole; its licence lets nobody redistribute it)")
    ratings = folder / "ml-100k.inter"
    with zipfile.ZipFile(fetched_wheel()) as wheel, wheel.open(RATINGS) as source, ratings.open("wb") as target:
        shutil.copyfileobj(source, target)
    with ratings.open("rb") as lines:
        print(f"  {sum(1 for _ in lines) - 1} ratings")

    say(3, "upload it")
    dataset = json.loads(amaml(environment, "datasets", "upload", str(ratings), "--wait", "--json"))
    print(f"  data set {dataset['id']}: {dataset['rows']} ratings by {dataset['tasks']} users, each user a task")

    say(4, "submit a meta-training job and watch it")
    spec = folder / "movielens.yaml"
    spec.write_text((HERE / "movielens.yaml").read_text().replace("DATASET", dataset["id"]))
    show_command("submit", str(spec), "--watch")
    if subprocess.run([AMAML, "submit", str(spec), "--watch"], env=environment, check=False).returncode != 0:
        raise Failed("the job didn't succeed")
    (job,) = json.loads(amaml(environment, "jobs", "--limit", "1", "--json"))

    say(5, "download the learned initialization")
    file = folder / "initialization.safetensors"
    amaml(environment, "download", job["id"], "-o", str(file))
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != job["initialization"]["sha256"]:
        raise Failed(f"the file's sha256 is {found}, the job says {job['initialization']['sha256']}")
    print(f"  {file.stat().st_size} bytes, sha256 {found}: as the job says")

    say(6, "rebuild the network in another process, and adapt it to users it never saw")
    command = [sys.executable, str(HERE / "adapt_unseen.py"), str(file), str(ratings)]
    if subprocess.run(command, env=environment, check=False).returncode != 0:
        raise Failed("the learned start is no better than a random one, or can't be used")


def amaml(environment: Mapping[str, str], *arguments: str) -> str:
    """Runs the command and returns its output; raises Failed if it fails."""
    show_command(*arguments)
    done = subprocess.run([AMAML, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise Failed(f"amaml {arguments[0]} ended with exit status {done.returncode}")
    return done.stdout


def fetched_wheel() -> Path:
    """The path of the wheel in the cache folder; pip downloads it if it isn't there. Raises Failed if its sha256 is wrong."""
    cache = cache_folder()
    wheel = cache / WHEEL
    if wheel.exists() and sha256_of(wheel) == WHEEL_SHA256:
        print(f"  {wheel} is there already")
        return wheel
    with tempfile.TemporaryDirectory(dir=cache) as fresh:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", fresh, "recbole==1.2.1"]
        print("  $ pip download --no-deps recbole==1.2.1")
        done = subprocess.run(download, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise Failed(f"pip can't fetch recbole 1.2.1:\n{done.stderr}")
        found = sha256_of(Path(fresh, WHEEL))
        if found != WHEEL_SHA256:
            raise Failed(f"{WHEEL} has sha256 {found}, {WHEEL_SHA256} was expected: not used")
        return Path(fresh, WHEEL).replace(wheel)


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/amaml or ~/.cache/amaml; where that can't be written, .cache in the repository."""
    candidates = [Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "amaml"), HERE.parent / ".cache"]
    for candidate in candidates:
        try:
            folder = candidate.expanduser()
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except (OSError, RuntimeError):  # RuntimeError: this user has no home
            continue
        return folder
    raise Failed(f"none of {', '.join(map(str, candidates))} can be written")


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def leftovers(folder: Path, url: str) -> list[str]:
    """What is left of this demo: processes with its folder in their arguments or environment, its port, the folder itself."""
    left = [f"process {pid}: {command}" for pid, command in processes_that_know(folder)]
    if url:
        with socket.socket() as probe:
            probe.settimeout(2)
            if probe.connect_ex((urlsplit(url).hostname or "", urlsplit(url).port or 0)) == 0:
                left.append(f"port {urlsplit(url).port} still answers")
    if folder.exists():
        left.append(f"folder {folder}")
    return left


def processes_that_know(folder: Path) -> list[tuple[int, str]]:
    """Other processes with the folder in their arguments or environment (on Linux; other systems don't show them)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        if int(entry.name) == os.getpid():
            continue
        arguments, environment = read_if_allowed(entry / "cmdline"), read_if_allowed(entry / "environ")
        if os.fsencode(folder) in arguments + environment:
            found.append((int(entry.name), arguments.replace(b"\0", b" ").decode(errors="replace").strip()))
    return found


def read_if_allowed(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # the process has just ended, or is another user's


def say(step: int, what: str) -> None:
    print(f"\n[{step}/{STEPS}] {what} ({time.monotonic() - BEGAN:.0f} s)", flush=True)


def show_command(*arguments: str) -> None:
    print(f"  $ amaml {' '.join(arguments)}", flush=True)


def ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    ignore_signals()  # a second one would only disturb the clean-up
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())

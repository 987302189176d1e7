"""The embedded PostgreSQL: first start, restart, hard kills, stale locks, wrong passwords, closed folders."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import psycopg
import pytest

from launcher import postgres
from launcher.children import Child, Halted, StartFailed
from launcher.log import Log

PASSWORD = "secret"
UNSAFE_BUT_FAST = {"fsync": "off"}


@contextmanager
def server(folder: Path, password: str = PASSWORD) -> Iterator[tuple[Child, str]]:
    child, url = postgres.start(folder, password, Log(io.StringIO()), Event(), UNSAFE_BUT_FAST)
    try:
        yield child, url.replace("+psycopg", "")
    finally:
        child.stop()


def others_reach_the_binaries() -> bool:
    return all(folder.stat().st_mode & 0o001 for folder in postgres._binary("postgres").resolve().parents)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One data folder for the whole file, initialised once."""
    return tmp_path_factory.mktemp("postgres") / "store"


def put(url: str, word: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS words (word text)")
        connection.execute("INSERT INTO words VALUES (%s)", [word])


def words(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        return {row[0] for row in connection.execute("SELECT word FROM words")}


def test_data_survive_a_stop_and_a_hard_kill(folder: Path) -> None:
    with server(folder) as (child, url):
        put(url, "stopped")
    assert child.status() == 0
    with server(folder) as (child, url):
        put(url, "killed")
        os.kill(child.pid, signal.SIGKILL)
    with server(folder) as (_, url):
        assert words(url) >= {"stopped", "killed"}


def test_it_listens_on_loopback_only_and_asks_for_the_password(folder: Path) -> None:
    with server(folder) as (_, url):
        with psycopg.connect(url) as connection:
            for setting, value in [("listen_addresses", "127.0.0.1"), ("unix_socket_directories", "")]:
                assert connection.execute("SELECT current_setting(%s)", [setting]).fetchone() == (value,)
            rules = connection.execute("SELECT DISTINCT auth_method FROM pg_hba_file_rules").fetchall()
        assert rules == [("scram-sha-256",)]
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(url.replace("secret", "wrong"))


def test_a_lost_password_is_reported(folder: Path) -> None:
    with server(folder):
        pass
    with pytest.raises(StartFailed, match="restore that file"), server(folder, "another"):
        pass
    assert not (folder / "data" / "postmaster.pid").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="stale locks are told apart by /proc")
def test_the_lock_of_a_process_never_reaped_is_no_obstacle(folder: Path) -> None:
    with server(folder) as (child, _):
        lock = (folder / "data" / "postmaster.pid").read_text()
    zombie = subprocess.Popen(["/bin/true"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    stale = folder / "data" / "postmaster.pid"
    stale.write_text(lock.replace(str(child.pid), str(zombie.pid), 1))
    os.chown(stale, (folder / "data").stat().st_uid, -1)
    with server(folder) as (_, url):
        put(url, "after a zombie")
    zombie.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="stale locks are told apart by /proc")
def test_the_lock_with_the_number_of_another_program_is_no_obstacle(folder: Path) -> None:
    with server(folder) as (child, _):
        lock = (folder / "data" / "postmaster.pid").read_text()
    owner = (folder / "data").stat().st_uid
    stranger = subprocess.Popen(["/bin/sleep", "60"], user=owner if os.geteuid() == 0 else None)
    try:
        stale = folder / "data" / "postmaster.pid"
        stale.write_text(lock.replace(str(child.pid), str(stranger.pid), 1))
        os.chown(stale, owner, -1)
        with server(folder) as (_, url):
            put(url, "after a stranger")
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_server_that_lives_keeps_its_lock(folder: Path) -> None:
    with server(folder) as (_, url):
        postgres._remove_stale_lock(folder / "data")
        assert (folder / "data" / "postmaster.pid").exists()
        put(url, "alive")


def test_an_interrupted_first_start_is_repeated(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    halt = Event()
    halt.set()
    with pytest.raises(Halted):
        postgres.start(folder, "secret", Log(io.StringIO()), halt)
    assert not (folder / "data").exists()
    assert not (folder / "password").exists()
    with server(folder) as (_, url):
        put(url, "second try")


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="as root, on Linux")
@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_as_root_below_a_folder_open_or_closed_to_others(mode: int) -> None:
    """The mode and owner of folders that aren't ours don't change."""
    with tempfile.TemporaryDirectory() as above:
        Path(above).chmod(mode)
        with server(Path(above) / "store") as (child, _):
            all_is_open = mode == 0o755 and others_reach_the_binaries()
            assert child.command.identity == ("nobody" if all_is_open else "nobody+search")
            effective = Path(f"/proc/{child.pid}/status").read_text().split("Uid:")[1].split()[1]
            assert effective == "65534"
        assert Path(above).stat().st_mode & 0o777 == mode
        assert Path(above).stat().st_uid == 0


START_AND_STOP = """
import sys; from pathlib import Path; from threading import Event
from launcher import postgres; from launcher.log import Log
child, _ = postgres.start(Path(sys.argv[1]), "secret", Log(sys.stderr), Event())
print(child.command.identity); child.stop()
"""


def identity_under(*prefix: str, folder: Path) -> str:
    """The identity with which the server runs when the launcher is started by this command."""
    done = subprocess.run(
        [*prefix, sys.executable, "-c", START_AND_STOP, str(folder)], capture_output=True, text=True, check=False
    )
    if "unshare" in done.stderr or "user namespace" in done.stderr:
        pytest.skip("this machine allows no user namespaces")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="as root, on Linux")
def test_root_that_cannot_become_anybody_else(tmp_path: Path) -> None:
    """As in a container that maps only one user."""
    assert identity_under("unshare", "--user", "--map-root-user", folder=tmp_path / "store") == "namespace"


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="as root, on Linux")
def test_a_user_without_a_name() -> None:
    """As in a container that is started with a user number without a name, which initdb alone would refuse."""
    as_number = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups"]
    if not others_reach_the_binaries():
        pytest.skip("this checkout lies below a folder that other users can't reach")
    # With the capability to read everywhere, since the interpreter itself may be in a closed folder.
    reading = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, 54321, 54321)
        assert identity_under(*as_number, *reading, folder=Path(folder)) == "namespace"
        assert (Path(folder) / "data").stat().st_uid == 54321


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="as root, on Linux")
def test_root_with_no_more_capabilities_than_container_engines_grant(tmp_path: Path) -> None:
    granted = "chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw sys_chroot mknod"
    bounds = ",".join(["-all", *(f"+{name}" for name in granted.split())])
    tmp_path.chmod(0o700)
    identity = identity_under("setpriv", "--bounding-set", bounds, folder=tmp_path / "store")
    assert identity == "nobody+override"

"""Where a folder lies, as far as it changes what can be promised: SQLite on a network file system, locks, and who waits for one."""

import errno
import fcntl
import os
import threading
from collections import namedtuple
from pathlib import Path

import psutil
import pytest
from sweeping import write_spec

from dsd_lab.cli.main import main
from dsd_lab.errors import NO_RESOURCES
from dsd_lab.files import locks
from dsd_lab.files.mounts import network_filesystem, shared_sqlite_warning
from dsd_lab.home.home import Home

Mount = namedtuple("Mount", ["mountpoint", "fstype"])
MOUNTS = [
    Mount("/", "ext4"),
    Mount("/home", "nfs4"),
    Mount("/home/me/fast disk", "xfs"),
    Mount("/mnt/share", "cifs"),
    Mount("/mnt/over", "nfs"),
    Mount("/mnt/over", "tmpfs"),
]


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/var/runs", None),
        ("/home/me/runs", "nfs4"),
        ("/home/me/fast disk/runs", None),
        ("/homes/runs", None),
        ("/mnt/share", "cifs"),
        ("/mnt/over/runs", None),
    ],
)
def test_the_deepest_mount_above_a_folder_is_its_own(folder, kind, monkeypatch):
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: MOUNTS)
    assert network_filesystem(Path(folder)) == kind


def test_f11_sqlite_on_a_network_file_system_is_told_of_in_one_line(tmp_path, monkeypatch):
    mounts = []
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    assert network_filesystem(tmp_path) is None  # nobody can tell
    mounts += [Mount("/", "ext4"), Mount(str(tmp_path.resolve()), "nfs4")]
    home = tmp_path / "home"
    assert network_filesystem(home) == "nfs4" and network_filesystem(Path("/")) is None
    told = shared_sqlite_warning(home, None)
    assert told and "(nfs4)" in told and "--tracking-uri" in told and "\n" not in told
    assert shared_sqlite_warning(home, "http://127.0.0.1:5000") is None
    # It is the database that counts, wherever the trials lie.
    assert shared_sqlite_warning(Path("/"), f"sqlite:///{home}/mlflow.db") == told
    assert (
        shared_sqlite_warning(home, "sqlite:////mlflow.db") is None and shared_sqlite_warning(Path("/"), None) is None
    )


def test_the_mounts_of_this_machine_are_known():
    assert any(mount.mountpoint == "/" and mount.fstype for mount in psutil.disk_partitions(all=True))


# -- Locks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_of_in_one_line(number, tmp_path, capsys, monkeypatch):
    """NFS without its lock service, Lustre mounted without them: two processes would train one trial."""
    spec, home = write_spec(tmp_path), Home(tmp_path / "home")
    home.prepare()

    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    for verb in (["sweep", spec, "--no-tracking"], ["train", spec, "--variant", "dsd", "--no-tracking"]):
        assert main([*map(str, verb), "--home", str(home.root)]) == NO_RESOURCES
        (line,) = capsys.readouterr().err.splitlines()
        assert f"has no file locks ({os.strerror(number)})" in line and "--home" in line
    assert not (home.root / "trials").exists() or not list(home.root.glob("trials/*/spool.jsonl"))


def test_who_waits_for_a_lock_says_so_once_and_is_heard_meanwhile(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(locks, "_TELL_AFTER", 0.1)
    heard, path = [], tmp_path / "lock"
    with locks.locked(path):
        waiting = threading.Thread(target=lambda: heard.append(in_turn()))

        def in_turn():
            with locks.while_waiting(lambda: heard.append("waits")), locks.locked(path) as held:
                return held

        waiting.start()
        while heard.count("waits") < 6:
            threading.Event().wait(0.02)
    waiting.join()
    assert heard[-1] is True
    assert capsys.readouterr().err.splitlines() == [f"dsd-lab: waits for another process, which holds {path}"]

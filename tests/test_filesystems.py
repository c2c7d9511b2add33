"""Where a folder lies, as far as it changes what can be promised: SQLite on a network file system."""

from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from dsd_lab.files.mounts import network_filesystem, shared_sqlite_warning

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

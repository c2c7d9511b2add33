"""Where a folder lies, as far as it changes what can be promised: SQLite on a network file system."""

from pathlib import Path, PurePosixPath

import pytest

from dsd_lab.files import mounts as filesystems
from dsd_lab.files.mounts import filesystem_of, network_filesystem, shared_sqlite_warning

MOUNTS = r"""
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:25 / /home rw,nosuid shared:5 master:1 - nfs4 server:/export/home rw,vers=4.2
31 30 0:26 / /home/me/fast\040disk rw - xfs /dev/nvme0n1 rw
32 22 0:27 / /mnt/share rw - cifs //server/share rw
33 22 0:28 / /mnt/over rw - nfs server:/a rw
34 22 0:29 / /mnt/over rw - tmpfs tmpfs rw
a line that is none
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/var/runs", "ext4"),
        ("/home/me/runs", "nfs4"),
        ("/home/me/fast disk/runs", "xfs"),
        ("/homes/runs", "ext4"),
        ("/mnt/share", "cifs"),
        ("/mnt/over/runs", "tmpfs"),
    ],
)
def test_the_deepest_mount_above_a_folder_is_its_own(folder, kind):
    assert filesystem_of(PurePosixPath(folder), MOUNTS) == kind


def test_f11_sqlite_on_a_network_file_system_is_told_of_in_one_line(tmp_path, monkeypatch):
    table = tmp_path / "mountinfo"
    monkeypatch.setattr(filesystems, "_MOUNTS", table)
    assert network_filesystem(tmp_path) is None  # nobody can tell
    table.write_text(f"1 0 0:1 / / rw - ext4 /dev/vda rw\n2 1 0:2 / {tmp_path.resolve()} rw - nfs4 server:/x rw\n")
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


def test_the_file_system_of_this_machine_is_told_apart():
    assert filesystem_of(PurePosixPath("/"), Path("/proc/self/mountinfo").read_text())

"""Nobody else on a machine gets at a sweep's Ray: its token, its folders, and what its processes know."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import ray
from neighbours import neighbour, plant_modules
from sweeping import DEADLINE

from dsd_lab.home.home import Home
from dsd_lab.runs import ray_engine as engine  # noqa: F401  sets what Ray reads at import
from dsd_lab.runs.child_environment import child_environment, safe_imports
from dsd_lab.runs.ray_cluster import connected

pytestmark = pytest.mark.integration

CLIENT = """
import sys
from ray._raylet import GcsClient
print(len(GcsClient(address=sys.argv[1]).get_all_node_info(timeout=5)))
"""


def asks(address: str, as_user: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """A client that asks a Ray for its nodes, with no more than is given here."""
    known = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    once = {"RAY_nums_py_gcs_reconnect_retry": "0", "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [*as_user, sys.executable, "-c", CLIENT, address],
        env=known | once | environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )


def open_to_others(folder: Path) -> list[Path]:
    """What everybody on the machine can write to, without what lies in folders that nobody else may enter."""
    if folder.stat().st_mode & 0o007 == 0:
        return []
    found = [folder] if folder.stat().st_mode & 0o002 else []
    for path in folder.iterdir():
        if not path.is_symlink():
            found += open_to_others(path) if path.is_dir() else [path] if path.stat().st_mode & 0o002 else []
    return found


@pytest.fixture
def user(tmp_path, monkeypatch):
    """A user with secrets in the environment, whose own folder is not this machine's."""
    folder = tmp_path / "user"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "RAY_MY_SECRET", "MY_OWN"):
        monkeypatch.setenv(name, "canary-5f3a9")
    return folder


def test_a_neighbour_is_refused_and_ray_leaves_nothing_outside_the_home_and_nothing_open_in_it(
    tmp_path, user, monkeypatch
):
    home = Home(tmp_path / "home")
    (tmp_path / "planted").mkdir()
    imported = plant_modules(tmp_path / "planted")
    monkeypatch.chdir(tmp_path / "planted")
    before = dict(os.environ)
    with connected(home, {}) as folder:
        assert folder.parent.stat().st_mode & 0o777 == 0o700 and list(folder.parent.glob("ray/session_*"))
        address, token = ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"]
        refused = [asks(address, neighbour()), asks(address, [], RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64)]
        let_in = asks(address, [], RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
        seen, numpy = ray.get(ray.remote(lambda: (dict(os.environ), __import__("numpy").__file__)).remote())
        assert open_to_others(folder.parent) == []
        for path in folder.parent.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                assert b"canary-5f3a9" not in content and token.encode() not in content, path
    assert let_in.stdout.strip() == "1", let_in.stderr
    for answer in refused:
        assert answer.returncode != 0 and not answer.stdout and "InvalidAuthToken" in answer.stderr, answer
    assert numpy == find_spec("numpy").origin and not imported.exists()
    assert "canary-5f3a9" not in seen.values() and seen["PYTHONSAFEPATH"] == "1"
    assert dict(os.environ) == before and list(user.iterdir()) == []
    assert not folder.parent.exists() and not home.root.exists()


def test_the_token_is_another_one_for_every_sweep(tmp_path, user, monkeypatch):
    seen = []
    monkeypatch.setattr(ray, "init", lambda **asked: seen.append(os.environ["RAY_AUTH_TOKEN"]))
    for _ in range(2):
        with connected(Home(tmp_path), {}):
            pass
    assert len(set(seen)) == 2 and all(len(token) == 64 for token in seen)


def test_processes_get_what_they_need_and_no_secret():
    needed = {"PATH": "/bin", "LC_ALL": "C", "CUDA_VISIBLE_DEVICES": "0", "OMP_NUM_THREADS": "1", "HF_HOME": "/hf"}
    asked = {"RAY_AUTH_TOKEN": "t", "HF_TOKEN_PATH": "/hf/token", "https_proxy": "http://proxy:3128"}
    secret = {
        "AWS_SECRET_ACCESS_KEY": "s",
        "HF_TOKEN": "s",
        "MLFLOW_TRACKING_PASSWORD": "s",
        "DB": "s",
        "RAY_X_KEY": "s",
    }
    assert child_environment(needed | asked | secret | {"HTTP_PROXY": "http://me:s@proxy"}) == needed | asked | {
        "PYTHONSAFEPATH": "1"
    }


def test_a_relative_folder_in_the_path_of_imports_is_not_passed_on():
    assert safe_imports({"PYTHONPATH": os.pathsep.join(["", "/a", ".", "b"])})["PYTHONPATH"] == "/a"

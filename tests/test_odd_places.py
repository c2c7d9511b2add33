"""A sweep from its first line to its report, where paths are odd, where the environment lacks something, and for a user who may do little."""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Mapping
from http.cookiejar import CookieJar
from pathlib import Path

import pytest
from neighbours import stranger
from sweeping import BASE, DEADLINE, answer_of, command, write_idx, write_spec

from dsd_lab.errors import NO_RESOURCES, OK, NoResources
from dsd_lab.files.database import sqlite_path, sqlite_uri
from dsd_lab.specs.loading import load_sweep
from dsd_lab.store.uri import refuse_unsuitable

ODD = "josé ? %41 #1 & 'q' \u65e5\u672c"


@pytest.fixture
def place():
    """A folder that every user may enter, with a short path."""
    folder = Path(tempfile.mkdtemp(prefix="o", dir="/tmp"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


class User:
    """Runs verbs as somebody whose machine is as described.

    Args:
        environment: which differs from that of the tests; None takes a variable away.
        files: files that a process may have open.
        prefix: what makes a command another user's.
        python: the interpreter.
    """

    def __init__(
        self,
        environment: Mapping[str, str | None],
        files: int = 4096,
        prefix: tuple[str, ...] = (),
        python: str = sys.executable,
    ) -> None:
        known = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"} | environment
        self._environment = {name: value for name, value in known.items() if value is not None}
        self._files, self._prefix, self._python = files, prefix, python

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (min(64, self._files), self._files))  # noqa: E731
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8", "start_new_session": True}
        whole = [*self._prefix, self._python, *command(*arguments)[1:]]
        return subprocess.Popen(whole, env=self._environment, cwd="/", preexec_fn=limit, **pipes)

    def does(self, *arguments: object) -> str:
        process = self.start(*arguments)
        output, error = process.communicate(timeout=DEADLINE)
        assert process.returncode == OK and "Traceback" not in error, (
            f"{arguments}: {process.returncode}\n{output}{error}"
        )
        return output

    def goes_through(self, folder: Path, spec: Path) -> None:
        """A sweep, its state, its report, MLflow's pages with its files, and the whole of it in another home."""
        home, other = folder / "home", folder / "other"
        (trial,) = load_sweep(spec).trials
        self.does("sweep", spec, "--home", home)
        (sweep,) = json.loads(self.does("status", "tiny", "--home", home, "--json"))["sweeps"]
        (shown,) = sweep["trials"]
        assert (shown["id"], shown["state"]) == (trial.id, "done")
        self.does("report", "tiny", "--home", home)
        assert "dsd" in (home / "reports" / "tiny" / "report.html").read_text(encoding="utf-8")
        self.does("export", "tiny", "--home", home, "--out", folder / "exported")
        self.does("import", folder / "exported", "--home", other)
        self.does("report", "tiny", "--home", other)
        for opened in (home, other):
            assert (opened / "mlflow.db").is_file()
            assert self.sees_in_mlflow(opened) >= {"trial.json", "history.parquet", "final"}

    def sees_in_mlflow(self, home: Path) -> set[str]:
        """Files of the one trial's run as MLflow's own pages list them."""
        server = self.start("ui", "--home", home, "--port", 5700, "--json")
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))

        def asked(path: str, content: object = None) -> dict:
            body = None if content is None else json.dumps(content).encode()
            request = urllib.request.Request(at + path, body, {"Content-Type": "application/json"})
            with browser.open(request, timeout=60) as answer:
                return json.load(answer)

        try:
            url = answer_of(server)["url"]
            at = url.partition("/?token=")[0]
            browser.open(url, timeout=DEADLINE).close()
            found = asked("/ajax-api/2.0/mlflow/experiments/get-by-name?experiment_name=tiny")["experiment"]
            search = {"experiment_ids": [found["experiment_id"]], "filter": "tags.`dsd.kind` = 'trial'"}
            (run,) = asked("/ajax-api/2.0/mlflow/runs/search", search)["runs"]
            listed = asked(f"/ajax-api/2.0/mlflow/artifacts/list?run_id={run['info']['run_id']}")["files"]
            assert asked(f"/get-artifact?path=trial.json&run_uuid={run['info']['run_id']}")["variant"] == "dsd"
            return {file["path"] for file in listed}
        finally:
            server.terminate()
            server.communicate(timeout=60)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_odd_letters_in_every_path(place):
    """Home, data, spec, HOME and TMPDIR lie below a folder with such a name, and the home's path is as long as SQLite takes."""
    odd = place / ODD
    for name in ("data", "user", "tmp"):
        (odd / name).mkdir(parents=True)
    write_idx(odd / "data")
    data = {"source": "idx", "path": str(odd / "data")}
    spec = write_spec(odd / "spec", base={"data": data, "probe": BASE["probe"] | {"images": 8}})
    user = User({"HOME": str(odd / "user"), "TMPDIR": str(odd / "tmp")})
    long = odd
    while len(os.fsencode(long)) < 350:
        long /= "long" * 20
    user.goes_through(long, spec)
    assert not (odd / "user" / ".ray").exists()


def poor(place: Path, user: User) -> None:
    """The whole way below `place`, in folders that every user may write to."""
    for name in ("spec", "home"):
        (place / name).mkdir()
        (place / name).chmod(0o777)
    user.goes_through(place / "home" / "below", write_spec(place / "spec"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("environment", "files"),
    [
        ({"HOME": None, "USER": None, "LOGNAME": None, "LANG": "C", "LC_ALL": "C"}, 4096),
        ({"HOME": "/proc/1", "TMPDIR": "/no/such/folder"}, 256),
    ],
    ids=["no-home-and-ascii", "read-only-home-no-tmpdir-few-files"],
)
def test_an_environment_that_lacks_something(place, environment, files):
    poor(place, User(environment, files))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_user_who_is_not_root_and_has_no_folder_of_their_own(place):
    (*prefix, python), environment = stranger()
    poor(place, User(environment, prefix=tuple(prefix), python=python))


@pytest.mark.parametrize("name", ["plain", "with space", "a?b", "a%41b", "a#b", "josé", "%3F%"])
def test_an_address_of_sqlite_leads_to_the_file_that_it_is_made_of(name, tmp_path):
    from sqlalchemy.engine import make_url

    path = tmp_path / name / "mlflow.db"
    assert sqlite_path(sqlite_uri(path)) == path == Path(make_url(sqlite_uri(path)).database)


def test_a_home_whose_path_is_too_long_for_sqlite_is_refused_unless_nothing_is_stored(tmp_path, capsys):
    from dsd_lab.cli.main import main

    home = tmp_path
    while len(str(home)) < 500:
        home /= "long" * 20
    assert main(["sweep", str(write_spec(tmp_path)), "--home", str(home)]) == NO_RESOURCES
    (line,) = capsys.readouterr().err.splitlines()
    assert "is too long for SQLite, which takes 504" in line and "--home" in line
    refuse_unsuitable(None, Path("/" + "a" * 246, "b" * 246))
    with pytest.raises(NoResources, match="path of 505 bytes"):
        refuse_unsuitable(None, Path("/" + "a" * 246, "b" * 247))
    assert main(["train", str(write_spec(tmp_path)), "--home", str(home), "--variant", "dsd", "--no-tracking"]) == OK

"""`dsd-lab ui` as its user and as a neighbour on the same machine meet it."""

import asyncio
import contextlib
import http.cookiejar
import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from neighbours import neighbour, plant_modules
from sweeping import DEADLINE, answer_of, processes_in, start, train_here, wait_until, write_spec

from dsd_lab.home.home import Home
from dsd_lab.store.mlflow_store import Store
from dsd_lab.store.ui_server import TokenGate

pytestmark = pytest.mark.integration

NEIGHBOUR = """
import json, sys, urllib.error, urllib.request
at, folder = sys.argv[1:]

def asked(path, content=None, **headers):
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(at + path, body, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code

create = {"name": "mine", "artifact_location": folder}
print(json.dumps([
    asked("/"), asked("/?token=guess"), asked("/health"), asked("/version"), asked("/get-artifact?path=secret.txt&run_uuid=0"),
    asked("/api/2.0/mlflow/experiments/create", create), asked("/ajax-api/2.0/mlflow/experiments/create", create),
    asked("/graphql", {"query": "{ __typename }"}), asked("/", Authorization="Bearer guess"),
    asked("/", Cookie="dsd-lab-ui=guess"), asked("/static-files/index.html"),
]))
"""


@contextlib.contextmanager
def opened(home, **options):
    """`dsd-lab ui` on a home folder: its process's address, the token, and a browser without scripts that has been let in."""
    process = start("ui", "--home", home.root, "--port", 5600, "--json", **options)
    try:
        at, _, token = answer_of(process)["url"].partition("/?token=")
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
        with browser.open(f"{at}/?token={token}", timeout=DEADLINE) as answer:
            yield at, token, browser, answer.read().decode()
    finally:
        process.terminate()
        process.communicate(timeout=60)
    wait_until(lambda: not processes_in(home.root), "nothing of the server is left")


def answered(gate, headers=(), query=b"", kind="http", method="GET", path="/"):
    """Status and headers of a gate's answer to one request."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "method": method, "path": path, "raw_path": path.encode(), "query_string": query}
    scope |= {"headers": list(headers), "scheme": "http", "server": ("127.0.0.1", 5000), "root_path": ""}
    asyncio.run(gate(scope, None, send))
    return sent[0].get("status", sent[0]["type"]), dict(sent[0].get("headers", []))


@pytest.fixture
def gate():
    async def behind(scope, receive, send):
        await send({"type": "http.response.start", "status": 299, "headers": []})

    return TokenGate(behind, "right")


@pytest.mark.parametrize(
    "headers",
    [[(b"cookie", b'odd="; dsd-lab-ui=right')], [(b"authorization", b"Bearer right")]],
    ids=["cookie", "bearer"],
)
def test_whoever_has_the_token_is_let_in(gate, headers):
    assert answered(gate, headers)[0] == 299
    assert answered(gate, headers, method="POST", path="/graphql")[0] == 299


def test_the_address_with_the_token_leads_to_the_page_without_it(gate):
    status, headers = answered(gate, query=b"a=1&token=right", path="//elsewhere")
    assert status == 303 and headers[b"location"] == b"/elsewhere?a=1"
    cookie = headers[b"set-cookie"].lower()
    assert cookie.startswith(b"dsd-lab-ui=right;") and b"httponly" in cookie and b"samesite=lax" in cookie


def test_the_first_page_leads_to_the_newest_trials_and_no_name_of_a_sweep_ends_its_script():
    sent = []

    async def send(message):
        sent.append(message)

    gate = TokenGate(None, "right", lambda: "/experiments/1/runs?viewStateShareKey=</script>")
    scope = {"type": "http", "method": "GET", "path": "/", "raw_path": b"/", "query_string": b"token=right"}
    scope |= {"headers": [], "scheme": "http", "server": ("127.0.0.1", 5000), "root_path": ""}
    asyncio.run(gate(scope, None, send))
    headers, page = dict(sent[0]["headers"]), sent[1]["body"].decode()
    assert sent[0]["status"] == 200 and headers[b"set-cookie"].startswith(b"dsd-lab-ui=right;")
    assert headers[b"cache-control"] == b"no-store"
    assert 'location.replace("/#/experiments/1/runs?viewStateShareKey=\\u003c/script>")' in page
    assert page.count("</script>") == 1 and "token" not in page and "right" not in page


@pytest.mark.parametrize(
    "request_of",
    [
        {},
        {"query": b"token=wrong"},
        {"query": b"token=right", "method": "POST"},
        {"headers": [(b"cookie", b"dsd-lab-ui=wrong")]},
        {"headers": [(b"cookie", b"\xff=\xfe; dsd-lab-ui=")]},
        {"headers": [(b"authorization", b"Bearer ")]},
    ],
)
def test_whoever_has_not_is_refused(gate, request_of):
    assert answered(gate, **request_of)[0] == 401


def test_a_websocket_without_the_token_is_closed(gate):
    assert answered(gate, kind="websocket")[0] == "websocket.close"


def test_a_neighbour_reads_nothing_and_the_printed_address_opens_in_one_click(tmp_path):
    home = Home(tmp_path / "home")
    home.prepare()
    Store(home)
    secret = tmp_path / "private"
    secret.mkdir(mode=0o700)
    (secret / "secret.txt").write_text("canary-5f3a9")
    planted = tmp_path / "planted"
    planted.mkdir()
    imported = plant_modules(planted)
    before = sorted(planted.iterdir())
    with opened(home, cwd=planted) as (at, token, browser, first):
        listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        port = f":{int(at.rpartition(':')[2]):04X}"
        assert {row[1] for row in listening if row[1].endswith(port) and row[3] == "0A"} == {f"0100007F{port}"}
        told = [*neighbour(), sys.executable, "-c", NEIGHBOUR, at, str(secret)]
        answers = subprocess.run(told, cwd="/", capture_output=True, text=True, timeout=DEADLINE)
        assert set(json.loads(answers.stdout)) == {401}, answers
        everybody_sees = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if p.exists()]
        assert not [line for line in everybody_sees if token.encode() in line]
        assert 'location.replace("/")' in first  # there is no sweep whose trials could be shown
        with browser.open(at, timeout=60) as answer:
            assert b"MLflow" in answer.read()
        found = f"{at}/api/2.0/mlflow/experiments/get-by-name?experiment_name="
        with browser.open(f"{found}Default", timeout=60) as answer:
            assert json.load(answer)["experiment"]["name"] == "Default"
        with pytest.raises(urllib.error.HTTPError) as caught:
            browser.open(f"{found}mine", timeout=60)
        assert caught.value.code == 404
    assert not imported.exists() and sorted(planted.iterdir()) == before


@pytest.mark.slow
@pytest.mark.parametrize("way", [shutil.move, shutil.copytree], ids=["moved", "copied"])
def test_a_home_that_lies_elsewhere_now_opens_and_shows_files_from_there(tmp_path, way):
    before = Home(tmp_path / "before")
    plan = train_here(before, write_spec(tmp_path, {"dsd": {}}, seeds=[0]))
    Store(before).sync(before.manifests()[plan.key])
    way(before.root, tmp_path / "after")
    home = Home(tmp_path / "after")
    if before.root.exists():  # whatever would be read from here is not what is asked for
        for path in before.root.rglob("trial.json"):
            path.write_text("{}")
    seen = sorted(before.root.rglob("*")) if before.root.exists() else None
    with opened(home) as (at, _, browser, first):

        def asked(path, content=None):
            body = None if content is None else json.dumps(content).encode()
            request = urllib.request.Request(at + path, body, {"Content-Type": "application/json"})
            with browser.open(request, timeout=60) as answer:
                return json.load(answer)

        view = f"{home.id[:8]}-trials-{plan.key}"
        found = asked("/ajax-api/2.0/mlflow/experiments/get-by-name?experiment_name=tiny")["experiment"]
        assert f'"/#/experiments/{found["experiment_id"]}/runs?viewStateShareKey={view}"' in first
        search = {"experiment_ids": [found["experiment_id"]], "filter": "tags.`dsd.kind` = 'trial'"}
        (run,) = asked("/ajax-api/2.0/mlflow/runs/search", search)["runs"]
        at_run = f"run_uuid={run['info']['run_id']}"
        listed = asked(f"/ajax-api/2.0/mlflow/artifacts/list?{at_run.replace('uuid', 'id')}")
        assert {"trial.json", "history.parquet", "final"} <= {f["path"] for f in listed["files"]}
        shown = asked(f"/get-artifact?path=trial.json&{at_run}")
        assert shown == json.loads((home.trial(plan.trials[0].id).root / "trial.json").read_text())
    assert seen == (sorted(before.root.rglob("*")) if before.root.exists() else None)

"""`dsd-lab ui` as its user and as a neighbour on the same machine meet it."""

import asyncio
import http.cookiejar
import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from neighbours import neighbour, plant_modules
from sweeping import DEADLINE, answer_of, processes_in, start, wait_until

from dsd_lab.home.home import Home
from dsd_lab.store.mlflow_store import Store
from dsd_lab.store.ui_server import TokenGate

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
    process = start("ui", "--home", home.root, "--port", 5600, "--json", cwd=planted)
    try:
        url = answer_of(process)["url"]
        at, _, token = url.partition("/?token=")
        listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        port = f":{int(at.rpartition(':')[2]):04X}"
        assert {row[1] for row in listening if row[1].endswith(port) and row[3] == "0A"} == {f"0100007F{port}"}
        told = [*neighbour(), sys.executable, "-c", NEIGHBOUR, at, str(secret)]
        answers = subprocess.run(told, cwd="/", capture_output=True, text=True, timeout=DEADLINE)
        assert set(json.loads(answers.stdout)) == {401}, answers
        everybody_sees = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if p.exists()]
        assert not [line for line in everybody_sees if token.encode() in line]

        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
        with browser.open(url, timeout=60) as answer:
            assert answer.url == f"{at}/" and b"MLflow" in answer.read()
        found = f"{at}/api/2.0/mlflow/experiments/get-by-name?experiment_name="
        with browser.open(f"{found}Default", timeout=60) as answer:
            assert json.load(answer)["experiment"]["name"] == "Default"
        with pytest.raises(urllib.error.HTTPError) as caught:
            browser.open(f"{found}mine", timeout=60)
        assert caught.value.code == 404
    finally:
        process.terminate()
        process.communicate(timeout=60)
    wait_until(lambda: not processes_in(home.root), "nothing of the server is left")
    assert not imported.exists() and sorted(planted.iterdir()) == before

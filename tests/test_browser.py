"""The report and MLflow's UI as a reader sees them, in headless Chromium: what is shown, what is complained of, what is asked for.

With DSD_LAB_SCREENSHOTS=DIR the pictures are kept there, to be looked at.
"""

import json
import os
import re
from pathlib import Path

import pytest
from browser import PROGRAM, Browser
from sweeping import EVALUATION, VARIANTS, answer_of, run, start, train_here, write_spec

from dsd_lab.home.home import Home
from dsd_lab.store.mlflow_store import Store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(PROGRAM is None, reason="no chromium on this machine"),
]
RANK = "latent/effective_rank/token"
NOT_OURS = re.compile(r"/ajax-api/2\.0/mlflow/users/current|ResizeObserver loop")
"""MLflow's page asks every server for its user; one without accounts has none. Its own layout takes two frames."""
IMAGES = "[...document.images].map(i => [i.complete, i.naturalWidth])"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seen")
    names = ("control", "naive", "dsd")
    spec = write_spec(folder, {v: VARIANTS[v] for v in names}, seeds=[0, 1], evaluate=[EVALUATION])
    home = Home(folder / "home")
    train_here(home, spec)
    assert run("report", "--home", home.root)[0] == 0
    return home


@pytest.fixture
def browser(tmp_path):
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = Path(os.environ.get("DSD_LAB_SCREENSHOTS") or tmp_path_factory.mktemp("pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize(
    ("kind", "width", "dark"), [("light", 1200, False), ("dark", 1200, True), ("phone", 380, False)]
)
def test_the_report_is_readable_at_every_width_and_asks_for_nothing(home, browser, pictures, kind, width, dark):
    browser.look(width, 900, dark)
    browser.open((home.report_folder("tiny") / "report.html").as_uri())
    browser.wait(f"document.readyState === 'complete' && {IMAGES}.every(i => i[0])")
    shown = browser.ask(IMAGES)
    assert len(shown) > 8 and all(pixels > 0 for _, pixels in shown)
    # Tables scroll inside their own boxes; the page itself never does.
    assert browser.ask("document.documentElement.scrollWidth") <= width
    ink, paper = browser.ask("['color', 'backgroundColor'].map(k => getComputedStyle(document.body)[k])")
    light = [sum(map(int, re.findall(r"\d+", colour)[:3])) / 765 for colour in (ink, paper)]
    assert abs(light[0] - light[1]) > 0.6 and (light[1] < 0.3) == dark
    browser.screenshot(pictures / f"report-{kind}.png", whole=True)
    # The slider: another step shows another frame, by click and by arrow key, without a script.
    frames = "[...document.querySelectorAll('.frames')[0].querySelectorAll('.frame')].map(f => f.offsetHeight > 0)"
    assert browser.ask(frames) == [False, True]
    browser.ask("document.querySelector('.frames label').click()")
    assert browser.ask(frames) == [True, False]
    browser.ask("document.querySelector('.frames input').focus()")
    for kind_of in ("rawKeyDown", "keyUp"):
        browser.call(
            "Input.dispatchKeyEvent", type=kind_of, key="ArrowRight", code="ArrowRight", windowsVirtualKeyCode=39
        )
    assert browser.ask(frames) == [False, True]
    browser.print(pictures / f"report-{kind}.pdf")
    assert (pictures / f"report-{kind}.pdf").read_bytes().startswith(b"%PDF")
    assert browser.complaints == []
    assert {a.partition(":")[0] for a in browser.asked} <= {"file", "data"}


def shown(text, among="a, button, [role=menuitem]"):
    """The element that has this text and no other."""
    return f"[...document.querySelectorAll({json.dumps(among)})].find(e => e.innerText.trim() === {json.dumps(text)})"


CHARTS = "document.querySelector('input[type=radio][value=CHART]')?.closest('label')"
LINES = """(name => [...document.querySelectorAll('.js-plotly-plot')].flatMap(p => p.data || [])
    .filter(t => t.metricKey === name && t.type.startsWith('scatter')))"""


def test_mlflow_opens_on_the_newest_trials_and_clicks_lead_from_the_experiments_to_a_chart_of_their_ranks(
    home, browser, pictures
):
    store = Store(home)
    experiment = store.client.get_experiment_by_name("tiny").experiment_id
    runs = {r.info.run_name: r.info.run_id for r in store.client.search_runs([experiment])}
    listed = [f"{v} s{s}" for v in ("control", "naive", "dsd") for s in (0, 1)]
    all_listed = f"{json.dumps(listed)}.every(n => document.body.innerText.includes(n))"
    process = start("ui", "--home", home.root, "--port", 5700, "--json")
    try:
        url = answer_of(process)["url"]
        at = url.partition("/?")[0]
        browser.look(1280, 900)
        browser.open(url)
        browser.wait(all_listed)
        assert browser.ask("location.href").startswith(f"{at}/#/experiments/{experiment}/runs?") and "token" not in (
            browser.ask("location.href")
        )
        assert not browser.ask(f"Boolean(document.querySelector('[row-id=\"{runs['tiny']}\"]'))")  # the parent
        headers = browser.ask("[...document.querySelectorAll('[role=columnheader]')].map(e => e.innerText.trim())")
        for name in ("variant", "seed", "size", "dsd.verdict", "latent/std", RANK, "latent/capacity_bits/token"):
            assert name in headers
        assert any(name.startswith("fid/") for name in headers)
        browser.screenshot(pictures / "mlflow-first.png")

        # By clicks alone, as somebody does who comes from the list of experiments.
        browser.click(shown("Experiments"))
        browser.wait("document.body.innerText.includes('Time created')")
        browser.click(shown("tiny", f'a[href*="/experiments/{experiment}"]'))
        browser.click(shown("Views"))
        browser.click(shown("tiny: trials"))
        browser.wait(all_listed)
        browser.click(CHARTS)
        browser.wait(f"new Set({LINES}({json.dumps(RANK)}).map(t => t.name)).size >= 4")
        drawn = browser.ask(f"{LINES}({json.dumps(RANK)}).map(t => [t.name, [...t.y]])")
        for name, values in drawn:
            history = store.client.get_metric_history(runs[name], RANK)
            assert values == pytest.approx([m.value for m in sorted(history, key=lambda m: m.step)])
        assert {name for name, _ in drawn} == set(listed)
        browser.screenshot(pictures / "mlflow-charts.png")
        browser.click("document.querySelector('[data-testid=saved-views-trigger]')")
        browser.click(shown("tiny: means of variants"))
        browser.wait("document.body.innerText.includes('Group: control')")
        browser.screenshot(pictures / "mlflow-means.png")

        browser.open(f"{at}/#/experiments/{experiment}/runs/{runs['dsd s0']}/artifacts/final/samples.png")
        browser.wait("[...document.images].some(i => i.src.startsWith('blob:') && i.naturalWidth > 100)")
        browser.screenshot(pictures / "mlflow-image.png")
        browser.open(f"{at}/#/experiments/{experiment}/runs/{runs['tiny']}")
        browser.wait("document.body.innerText.includes('collapsed at step')")  # the table of verdicts
        browser.screenshot(pictures / "mlflow-parent.png")
        browser.open(f"{at}/#/experiments/{experiment}/runs/{runs['tiny']}/artifacts/report/report.html")
        browser.wait("document.querySelector('iframe')")
        browser.screenshot(pictures / "mlflow-report.png")
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert [c for c in browser.complaints if not NOT_OURS.search(c)] == []
    assert [a for a in browser.asked if not a.startswith((at, "data:", f"blob:{at}", "about:"))] == []

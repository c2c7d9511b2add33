"""The progress of a sweep where there is no terminal: whole lines, and the time left with evaluations in it."""

import io

from rich.console import Console
from sweeping import EVALUATION, train_here, write_spec

from dsd_lab.cli.main import main
from dsd_lab.cli.progress import SweepProgress
from dsd_lab.errors import TRIALS_FAILED
from dsd_lab.specs.loading import load_sweep


def test_a_line_stays_whole_however_narrow_the_console(whole, home):
    plan, told = load_sweep(whole.spec), io.StringIO()
    (trial,) = plan.trials
    error = "word " * 60 + "end"
    with SweepProgress(home, plan.trials, Console(file=told, width=20), plan.spec.evaluate, plan.spec.report):
        home.trial(trial.id).root.mkdir(parents=True)
        home.trial(trial.id).write_status(state="failed", seconds=3.0, error=error)
    assert told.getvalue() == f"{trial.name}: failed after 3 s: {error}\n"


def test_the_time_left_has_the_evaluations_that_are_not_done_in_it(home, tmp_path):
    spec = write_spec(tmp_path, evaluate=[EVALUATION])
    plan = train_here(home, spec)
    (trial,) = plan.trials
    (made,) = (home.trial(trial.id).root / "evaluations").glob("*.json")

    def left():
        progress = SweepProgress(home, plan.trials, Console(file=io.StringIO()), plan.spec.evaluate, plan.spec.report)
        return progress._remaining.seconds(progress._seen(progress._snapshot()), progress._holdout)

    assert left() == 0
    made.unlink()
    assert left() > 0


def test_a_sweep_shows_the_time_left_of_its_own_evaluations(home, tmp_path, monkeypatch):
    spec, asked = write_spec(tmp_path, evaluate=[EVALUATION]), []

    class Watched(SweepProgress):
        def __init__(self, home, trials, console, evaluations, settings):
            asked.append(evaluations)
            super().__init__(home, trials, console, evaluations, settings)

    monkeypatch.setattr("dsd_lab.cli.sweep.SweepProgress", Watched)
    monkeypatch.setattr(
        "dsd_lab.runs.ray_engine.run_trials", lambda *arguments: None
    )  # what is run is not the question
    assert main(["sweep", str(spec), "--home", str(home.root), "--no-tracking"]) == TRIALS_FAILED
    assert asked == [load_sweep(spec).spec.evaluate] and len(asked[0]) == 1

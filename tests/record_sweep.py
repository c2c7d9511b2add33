"""When each trial of a finished sweep started, logged, ended and was evaluated, in seconds, for `test_remaining.py`.

python tests/record_sweep.py HOME SPEC > tests/recorded/NAME.json
"""

import json
import sys
from pathlib import Path
from typing import Any

from dsd_lab.home.home import Home
from dsd_lab.specs.loading import load_sweep


def recording(home: Home, spec: Path) -> list[dict[str, Any]]:
    """One entry a trial, counted from the first one's start; of one that went on after a stop it tells nothing true."""
    plan = load_sweep(spec)
    zero = min(home.trial(t.id).status().started for t in plan.trials)

    def at(time: float) -> float:
        return round(time - zero, 1)

    found = []
    for trial in plan.trials:
        folder = home.trial(trial.id)
        status, events = folder.status(), [json.loads(line) for line in folder.spool.open()]
        evaluations = [(json.loads(p.read_text()), p.stat()) for p in (folder.root / "evaluations").glob("*.json")]
        entry = {
            "variant": trial.variant,
            "point": trial.point,
            "seed": trial.seed,
            "started": at(status.started),
            "trained": at(events[-1]["time"]),
            "seconds": round(status.seconds, 1),
            "logged": [[at(e["time"]), e["step"]] for e in events if e["kind"] == "train"][3::4],
            "evaluated": None,
        }
        for content, file in evaluations:
            entry["evaluated"] = [round(content["seconds"], 1), at(file.st_mtime)]
        found.append(entry)
    return found


if __name__ == "__main__":
    print("[\n" + ",\n".join(map(json.dumps, recording(Home(Path(sys.argv[1])), Path(sys.argv[2])))) + "\n]")

"""Verbs that inspect, clean, compare and exchange the sweeps of home folders."""

from __future__ import annotations

from dsd_lab.cli.arguments import (
    SWEEP,
    Verbs,
    add_verb,
    positive,
    takes_tracking,
    takes_trial,
    takes_yes,
)


def add(verbs: Verbs) -> None:
    """Add the verbs."""
    status = add_verb(
        verbs,
        "status",
        "show all sweeps in the home folder; for a named sweep also the history of its settings and commands",
        "dsd-lab status collapse_ablation--quick",
    )
    status.add_argument(
        "sweep", nargs="?", metavar="SPEC|SWEEP", help="only this sweep, by spec file or name (default: all)"
    )

    logs = add_verb(verbs, "logs", "show what a trial recorded", "dsd-lab logs 3ddf1775b702 --lines 40")
    takes_trial(logs)
    logs.add_argument("--lines", type=positive, default=10, metavar="N", help="last events shown (default: 10)")
    logs.add_argument("--follow", action="store_true", help="print new events until the trial ends or Ctrl-C")

    doctor = add_verb(
        verbs, "doctor", "check this machine, the home folder and the store, and close orphaned runs", "dsd-lab doctor"
    )
    doctor.add_argument("--dry-run", action="store_true", help="list orphaned MLflow runs without closing them")
    takes_tracking(doctor)

    gc = add_verb(verbs, "gc", "show what no recorded sweep needs; with --yes, delete it", "dsd-lab gc --yes")
    takes_yes(gc)

    rm = add_verb(
        verbs,
        "rm",
        "show a sweep's record and the trials that no other sweep names; with --yes, delete them",
        "dsd-lab rm collapse_ablation--quick --yes",
    )
    rm.add_argument("sweep", metavar="SWEEP", help=SWEEP)
    takes_yes(rm)

    compare = add_verb(
        verbs,
        "compare",
        "compare two sweeps, or two profiles of one, by variant and paired by seed",
        "dsd-lab compare collapse_ablation--quick collapse_ablation--full",
    )
    compare.add_argument("a", metavar="A", help=SWEEP)
    compare.add_argument("b", metavar="B", help="the other sweep; differences are B minus A")
    takes_tracking(compare)

    export = add_verb(
        verbs,
        "export",
        "write a sweep to a folder that another home folder can import",
        "dsd-lab export collapse_ablation --out review",
    )
    export.add_argument("sweep", metavar="SWEEP", help=SWEEP)
    export.add_argument("--out", metavar="DIR", required=True, help="new or empty folder to write")
    export.add_argument("--weights", action="store_true", help="include the newest checkpoint of every trial")
    export.add_argument(
        "--anonymous", action="store_true", help="remove absolute paths, process ids, host and user names"
    )
    export.add_argument("--no-pictures", action="store_true", help="leave out reconstructions and samples")

    take = add_verb(verbs, "import", "check an exported sweep and add it to the home folder", "dsd-lab import review")
    take.add_argument("folder", metavar="DIR", help="folder that `dsd-lab export` wrote")

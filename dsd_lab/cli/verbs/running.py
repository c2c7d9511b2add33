"""Verbs that run trials or predict what they need."""

from __future__ import annotations

import os

from dsd_lab.cli.arguments import (
    SPEC,
    Verbs,
    add_verb,
    allows_code_change,
    chance,
    positive,
    quality,
    takes_only,
    takes_spec,
    takes_spec_options,
    takes_tracking,
)
from dsd_lab.planning.gpus import DEFAULT_GPU, GPUS


def add(verbs: Verbs) -> None:
    """Add the verbs."""
    plan = add_verb(verbs, "plan", "show the trials of a spec without running them", f"dsd-lab plan {SPEC}")
    takes_spec(plan)
    takes_only(plan)
    plan.add_argument(
        "--gpu",
        choices=tuple(GPUS),
        default=DEFAULT_GPU,
        help=f"GPU for which the time of trials with `resources.gpus` is estimated (default: {DEFAULT_GPU})",
    )

    data = add_verb(
        verbs,
        "data",
        "show the images of a spec or a folder",
        "dsd-lab data ../shared/photos --out photos.png",
    )
    data.add_argument(
        "spec",
        metavar="SPEC|FOLDER",
        help="YAML file, name of a shipped spec, a .zip file, or a folder of images, parquet, idx or tar files",
    )
    takes_spec_options(data)
    data.add_argument("--out", metavar="FILE", help="PNG with the first training images of every class")

    ready = add_verb(
        verbs,
        "prepare",
        "decode, resize and crop a set of images once, for training that reads them at random",
        "dsd-lab prepare ../photos --size 64 --out ../photos64",
    )
    ready.add_argument(
        "spec", metavar="SPEC|FOLDER", help="YAML file, name of a shipped spec, a folder of images, or a .zip file"
    )
    takes_spec_options(ready)
    ready.add_argument("--out", metavar="DIR", required=True, help="folder to write; the same command resumes")
    ready.add_argument(
        "--size", type=positive, metavar="N", help="pixels of the shorter side (default: the spec's `data.size`)"
    )
    ready.add_argument(
        "--jpeg",
        type=quality,
        nargs="?",
        const=95,
        metavar="QUALITY",
        help="a sixth of the disk, lossy: other images than the source's (quality 95 without a number)",
    )
    ready.add_argument("--workers", type=positive, metavar="N", help="threads (default: one per processor)")

    sweep = add_verb(verbs, "sweep", "run the unfinished trials of a spec", f"dsd-lab sweep {SPEC} --profile full")
    takes_spec(sweep)
    takes_only(sweep)
    sweep.add_argument(
        "--max-concurrent", type=positive, metavar="N", help="trials at a time (default: as many as fit)"
    )
    sweep.add_argument(
        "--address",
        metavar="ADDRESS",
        default=os.environ.get("RAY_ADDRESS"),
        help="a running Ray cluster, such as auto or 10.0.0.1:6379; HOME must be on storage shared by its nodes (default: $RAY_ADDRESS, else this machine)",
    )
    sweep.add_argument("--retry-failed", action="store_true", help="retry failed trials from their last checkpoint")
    allows_code_change(sweep)
    sweep.add_argument("--fail-fast", action="store_true", help="stop all trials at the first failure")
    sweep.add_argument(
        "--stop-collapsed",
        type=chance,
        metavar="CHANCE",
        help="stop trials that have at least this probability of collapse after 40 or 70%% of their steps by HOME's forecast; they have no verdict, so not for ablations (default: never)",
    )
    takes_tracking(sweep, optional=True)

    train = add_verb(
        verbs,
        "train",
        "run one trial in this process, without Ray",
        f"dsd-lab train {SPEC} --variant dsd --seed 0 --no-tracking",
    )
    takes_spec(train)
    train.add_argument("--variant", required=True, help="name of the variant")
    train.add_argument("--seed", type=int, default=None, help="seed (default: the spec's first)")
    allows_code_change(train)
    takes_tracking(train, optional=True)

    bench = add_verb(
        verbs,
        "bench",
        "measure training speed on this machine and where the time goes",
        f"dsd-lab bench {SPEC} --variant dsd",
    )
    bench.add_argument(
        "specs",
        nargs="+",
        metavar="SPEC|SIZE",
        help="YAML file, name of a shipped spec, or a network size such as nano8 (on random images)",
    )
    takes_spec_options(bench)
    bench.add_argument(
        "--variant",
        action="append",
        metavar="NAME",
        help="only this variant; repeatable (default: all whose steps differ)",
    )
    bench.add_argument(
        "--repeats", type=positive, default=5, metavar="N", help="repeats of each measurement (default: 5)"
    )
    bench.add_argument(
        "--steps", type=positive, metavar="N", help="steps per repeat (default: as many as take half a second)"
    )
    bench.add_argument(
        "--processes",
        type=positive,
        default=1,
        metavar="N",
        help="also compare a trial on N processes with one process (one GPU each if the trial uses GPUs)",
    )
    bench.add_argument(
        "--data",
        action="store_true",
        help="only how fast images are read: those of a SPEC or a FOLDER as files, as parquet and prepared, by 1, 2 and 4 threads",
    )
    bench.add_argument("--random-images", action="store_true", help="use random images instead of the spec's")

"""Verbs and options of the command line; imports nothing heavy (over 300 lines: one list, frozen by a test)."""

from __future__ import annotations

import argparse
import os
import shlex

from dsd_lab.cli.options import (
    TRIAL,
    add_verb,
    allows_code_change,
    answers_json,
    chance,
    checkpoint,
    count,
    positive,
    quality,
    takes_only,
    takes_plugins,
    takes_precision,
    takes_processes,
    takes_spec,
    takes_spec_options,
    takes_tracking,
    takes_trial,
    takes_yes,
)
from dsd_lab.files.printable import one_line
from dsd_lab.planning.gpus import DEFAULT_GPU, GPUS
from dsd_lab.specs.near import did_you_mean
from dsd_lab.version import __version__

_SPEC = "collapse_ablation"


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; a test freezes it."""
    return _parser_and_verbs()[0]


def _parser_and_verbs() -> tuple[argparse.ArgumentParser, argparse._SubParsersAction[argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(
        prog="dsd-lab",
        description="Ablation sweeps of end-to-end latent diffusion: do the latents collapse, which change prevents it, and how certain is that?",
        epilog=f"example: dsd-lab sweep {_SPEC} && dsd-lab report",
    )
    parser.add_argument("--version", action="version", version=f"dsd-lab {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    _add_running(verbs)
    _add_finished(verbs)
    _add_keeping(verbs)
    _add_exchanging(verbs)
    _add_tools(verbs)
    return parser, verbs


def parse(words: list[str]) -> argparse.Namespace:
    """Parse the words after `dsd-lab`; prints a correction and exits if that fails."""
    parser, verbs = _parser_and_verbs()
    if words and not words[0].startswith("-") and words[0] not in verbs.choices:
        near = did_you_mean(words[0], verbs.choices)
        meant = near if "did you mean" in near else "; `dsd-lab --help` lists them"
        parser.error(f"no verb {one_line(words[0])!r}{meant}")
    arguments, left = parser.parse_known_args(words)
    if left:
        parser.error(_unrecognised(words, left))
    return arguments


def _unrecognised(words: list[str], left: list[str]) -> str:
    """Message for words that no verb takes; mostly an override typed as two words."""
    shown = one_line(shlex.join(left))
    sets = [place for place, word in enumerate(words[:-2]) if word == "--set"]
    for key, value in ((words[place + 1], words[place + 2]) for place in sets):
        if "=" not in key and not value.startswith("-"):
            return f"--set {one_line(key)} {one_line(value)}: write --set {one_line(shlex.quote(f'{key}={value}'))}"
    if sets and "=" in left[0]:
        return f"{shown}: every override needs its own --set: write --set {one_line(shlex.quote(left[0]))}"
    return f"unrecognized arguments: {shown}"


def _add_running(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add verbs that run trials or predict what they need."""
    plan = add_verb(verbs, "plan", "show the trials of a spec without running them", f"dsd-lab plan {_SPEC}")
    takes_spec(plan)
    takes_only(plan)
    plan.add_argument(
        "--gpu",
        choices=tuple(GPUS),
        default=DEFAULT_GPU,
        help=f"GPU for which the time of trials with `resources.gpus` is estimated (default: {DEFAULT_GPU})",
    )
    answers_json(plan)

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
    answers_json(data)

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
    ready.add_argument("--out", metavar="DIR", required=True, help="folder to write; the same command goes on with it")
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
    ready.add_argument("--workers", type=positive, metavar="N", help="threads (default: one for each processor)")
    answers_json(ready)

    sweep = add_verb(verbs, "sweep", "run the unfinished trials of a spec", f"dsd-lab sweep {_SPEC} --profile full")
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
        help="stop trials that have at least this probability of collapse after 5, 15, 40 or 70%% of their steps by HOME's forecast; they have no verdict, so not for ablations (default: never)",
    )
    sweep.add_argument(
        "--no-tracking", action="store_true", help="do not store in MLflow; `dsd-lab report` does it later"
    )
    takes_tracking(sweep)
    answers_json(sweep)

    train = add_verb(
        verbs,
        "train",
        "run one trial in this process, without Ray",
        f"dsd-lab train {_SPEC} --variant dsd --seed 0 --no-tracking",
    )
    takes_spec(train)
    train.add_argument("--variant", required=True, help="name of the variant")
    train.add_argument("--seed", type=int, default=None, help="seed (default: the spec's first)")
    allows_code_change(train)
    train.add_argument("--no-tracking", action="store_true", help="do not store in MLflow")
    takes_tracking(train)
    answers_json(train)

    bench = add_verb(
        verbs,
        "bench",
        "measure training speed on this machine and where the time goes",
        f"dsd-lab bench {_SPEC} --variant dsd",
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
        help="also compare a trial on N processes with one process (a GPU each if the trial uses one)",
    )
    bench.add_argument(
        "--data",
        action="store_true",
        help="only how fast images are read: those of a SPEC or a FOLDER as files, as parquet and prepared, by 1, 2 and 4 threads",
    )
    bench.add_argument("--random-images", action="store_true", help="use random images instead of the spec's")
    answers_json(bench)


def _add_finished(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add verbs that use finished trials."""
    report = add_verb(verbs, "report", "write tables, figures and pages of sweeps", f"dsd-lab report {_SPEC}")
    report.add_argument(
        "sweep",
        nargs="*",
        metavar="SPEC|SWEEP",
        help="spec file or sweep name; several give one report (default: the latest sweep)",
    )
    takes_plugins(report)
    report.add_argument("--profile", help="profile to report (default: the latest)")
    report.add_argument(
        "--x",
        choices=["step", "images", "flops"],
        help="x axis of figures over training (default: the spec's report.x)",
    )
    report.add_argument("--out", metavar="DIR", help="folder for the report (default: HOME/reports/SWEEP)")
    takes_tracking(report)
    answers_json(report)

    sample = add_verb(
        verbs, "sample", "draw images from a trained trial", "dsd-lab sample 3ddf1775b702 --n 16 --class 3 --guidance 2"
    )
    takes_trial(sample)
    takes_plugins(sample)
    sample.add_argument("--n", type=positive, help="images (default: 16)")
    sample.add_argument(
        "--class",
        dest="label",
        default=None,
        metavar="NAME|K",
        help="class to draw, by name or number (default: all in turn)",
    )
    sample.add_argument(
        "--labels", choices=("balanced", "random", "training"), help="classes of all images (default: balanced)"
    )
    sample.add_argument("--guidance", type=float, help="classifier-free guidance scale (default: 1, none)")
    sample.add_argument("--sampler", help="solver (default: heun; `dsd-lab parts sampler` lists them)")
    sample.add_argument("--steps", type=positive, help="solver steps (default: 25)")
    sample.add_argument("--weights", help="ema, ema:DECAY or trained (default: ema)")
    sample.add_argument("--checkpoint", type=positive, metavar="STEP", help="a kept checkpoint (default: the last)")
    takes_precision(sample)
    sample.add_argument(
        "--protocol", choices=("adm", "jit", "repa"), help="number, labels, sampler and steps of a published protocol"
    )
    sample.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    takes_processes(sample)
    sample.add_argument(
        "--npz", action="store_true", help="write one .npz for ADM's TensorFlow evaluator (arr_0) instead of PNGs"
    )
    sample.add_argument("--out", metavar="DIR", help="folder for the PNGs (default: HOME/samples/TRIAL)")
    answers_json(sample)

    evaluate = add_verb(
        verbs,
        "evaluate",
        "evaluate finished trials with other settings, without training",
        "dsd-lab evaluate 3ddf1775b702 --guidance 1 --guidance 2 --sampler dopri5 --images 1000",
    )
    evaluate.add_argument("trials", nargs="+", metavar="TRIAL", help=TRIAL)
    takes_plugins(evaluate)
    evaluate.add_argument(
        "--spec", metavar="SPEC", help="make the evaluations of this spec; replaces the following options"
    )
    evaluate.add_argument("--profile", help="profile of that spec")
    evaluate.add_argument(
        "--protocol", choices=("adm", "jit", "repa"), help="all settings of a published protocol; needs --reference"
    )
    evaluate.add_argument("--guidance", type=float, action="append", help="guidance scale; repeatable (default: 1)")
    evaluate.add_argument("--sampler", help="solver (default: heun; `dsd-lab parts sampler` lists them)")
    evaluate.add_argument("--steps", type=positive, help="solver steps (default: 25)")
    evaluate.add_argument("--images", type=count, metavar="N", help="images, or holdout (default: holdout)")
    evaluate.add_argument(
        "--labels", choices=("balanced", "random", "training"), help="classes of N images (default: balanced)"
    )
    evaluate.add_argument("--weights", action="append", help="ema, ema:DECAY or trained; repeatable (default: ema)")
    evaluate.add_argument(
        "--checkpoint",
        type=checkpoint,
        action="append",
        metavar="STEP|all",
        help="a kept checkpoint, or all of them and the last: FID over training; repeatable (default: last)",
    )
    takes_precision(evaluate)
    takes_processes(evaluate)
    evaluate.add_argument(
        "--extractor", choices=("indomain", "inception", "dinov2"), help="features (default: indomain)"
    )
    evaluate.add_argument("--reference", metavar="NPZ", help="published statistics (mu, sigma) for FID")
    evaluate.add_argument(
        "--metrics",
        type=lambda text: text.split(","),
        metavar="NAME,...",
        help="such as fid,kid,knn (default: as in a spec)",
    )
    evaluate.add_argument(
        "--no-tracking", action="store_true", help="do not store in MLflow; `dsd-lab report` does it later"
    )
    takes_tracking(evaluate)
    answers_json(evaluate)

    fetched = add_verb(
        verbs,
        "fetch-data",
        "download a data set by name, with its licence and pinned hashes; without a name, list them",
        "dsd-lab fetch-data mnist",
    )
    fetched.add_argument("names", nargs="*", metavar="NAME", help="such as mnist or cifar10 (default: list all)")
    fetched.add_argument("--out", metavar="DIR", help="its folder (default: data/NAME)")
    answers_json(fetched)

    weights = add_verb(
        verbs,
        "fetch-weights",
        "download pinned weights into the home folder",
        "dsd-lab fetch-weights inception",
    )
    weights.add_argument("names", nargs="*", metavar="NAME", help="inception or dinov2 (default: inception)")
    answers_json(weights)
    forecast = add_verb(
        verbs,
        "forecast",
        "learn to forecast collapse early from finished trials, and evaluate it by leaving one spec out",
        "dsd-lab forecast --json",
    )
    forecast.add_argument("more", nargs="*", metavar="HOME", help="other home folders to learn from")
    answers_json(forecast)

    again = add_verb(
        verbs,
        "reproduce",
        "retrain a trial in a separate folder, and test whether weights and records are bit-identical",
        "dsd-lab reproduce 3ddf1775b702 --from review",
    )
    takes_trial(again)
    takes_plugins(again)
    again.add_argument(
        "--from", dest="source", metavar="EXPORT", help="folder that `dsd-lab export` wrote (default: HOME's own trial)"
    )
    again.add_argument("--data", metavar="DIR", help="present folder of its images (default: the recorded one)")
    answers_json(again)

    latents = add_verb(
        verbs,
        "latents",
        "write a trial's latents and spectra to an .npz file",
        "dsd-lab latents 3ddf1775b702 --out latents.npz",
    )
    takes_trial(latents)
    takes_plugins(latents)
    latents.add_argument(
        "--split", choices=("holdout", "train"), default="holdout", help="images to encode (default: holdout)"
    )
    latents.add_argument("--out", metavar="FILE", help="file to write (default: HOME/latents/TRIAL-SPLIT.npz)")
    answers_json(latents)


def _add_keeping(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add verbs that inspect and clean the home folder."""
    status = add_verb(
        verbs,
        "status",
        "show all sweeps in the home folder; for a named sweep also the history of its settings and commands",
        "dsd-lab status collapse_ablation--quick",
    )
    status.add_argument(
        "sweep", nargs="?", metavar="SPEC|SWEEP", help="only this sweep, by spec file or name (default: all)"
    )
    answers_json(status)

    logs = add_verb(verbs, "logs", "show what a trial recorded", "dsd-lab logs 3ddf1775b702 --lines 40")
    takes_trial(logs)
    logs.add_argument("--lines", type=positive, default=10, metavar="N", help="last events shown (default: 10)")
    logs.add_argument("--follow", action="store_true", help="print new events until the trial ends or Ctrl-C")
    answers_json(logs)

    doctor = add_verb(
        verbs, "doctor", "check this machine, the home folder and the store, and close orphaned runs", "dsd-lab doctor"
    )
    doctor.add_argument("--dry-run", action="store_true", help="list orphaned MLflow runs without closing them")
    takes_tracking(doctor)
    answers_json(doctor)

    gc = add_verb(verbs, "gc", "show what no recorded sweep needs; with --yes, delete it", "dsd-lab gc --yes")
    takes_yes(gc)
    answers_json(gc)

    rm = add_verb(
        verbs,
        "rm",
        "show a sweep's record and the trials that no other sweep names; with --yes, delete them",
        "dsd-lab rm collapse_ablation--quick --yes",
    )
    rm.add_argument("sweep", metavar="SWEEP", help="sweep name as in `dsd-lab status`")
    takes_yes(rm)
    answers_json(rm)


def _add_exchanging(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add verbs that compare, export and import sweeps."""
    compare = add_verb(
        verbs,
        "compare",
        "compare two sweeps, or two profiles of one, by variant and paired by seed",
        "dsd-lab compare collapse_ablation--quick collapse_ablation--full",
    )
    compare.add_argument("a", metavar="A", help="sweep name as in `dsd-lab status`")
    compare.add_argument("b", metavar="B", help="the other sweep; differences are B minus A")
    takes_tracking(compare)
    answers_json(compare)

    export = add_verb(
        verbs,
        "export",
        "write a sweep to a folder that another home folder can import",
        "dsd-lab export collapse_ablation --out review",
    )
    export.add_argument("sweep", metavar="SWEEP", help="sweep name as in `dsd-lab status`")
    export.add_argument("--out", metavar="DIR", required=True, help="new or empty folder to write")
    export.add_argument("--weights", action="store_true", help="include the newest checkpoint of every trial")
    export.add_argument(
        "--anonymous", action="store_true", help="remove absolute paths, process ids, host and user names"
    )
    answers_json(export)

    take = add_verb(verbs, "import", "check an exported sweep and add it to the home folder", "dsd-lab import review")
    take.add_argument("folder", metavar="DIR", help="folder that `dsd-lab export` wrote")
    answers_json(take)


def _add_tools(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add verbs for MLflow's pages, starter specs, editors and shells."""
    ui = add_verb(verbs, "ui", "open MLflow's UI on this machine", "dsd-lab ui")
    ui.add_argument(
        "--port",
        type=positive,
        default=5000,
        help="port on 127.0.0.1; the next free one if it is in use (default: 5000)",
    )
    takes_tracking(ui)
    answers_json(ui)

    specs = add_verb(
        verbs,
        "specs",
        "list the shipped specs, and whether their images are present",
        "dsd-lab specs",
    )
    answers_json(specs)

    init = add_verb(verbs, "init", "write a commented spec to start from", "dsd-lab init my_sweep.yaml --from mnist")
    init.add_argument(
        "path", nargs="?", metavar="PATH", help="file to write (default: my_sweep.yaml, or the shipped spec's name)"
    )
    init.add_argument(
        "--from", dest="source", metavar="NAME", help="copy this shipped spec (`dsd-lab specs` lists them)"
    )
    answers_json(init)

    schema = add_verb(
        verbs, "schema", "print the JSON Schema of a spec, for editors", "dsd-lab schema > experiments/spec.schema.json"
    )
    takes_plugins(schema)
    answers_json(schema)

    parts = add_verb(
        verbs, "parts", "list the parts that a spec can use, and where they are defined", "dsd-lab parts sampler"
    )
    parts.add_argument("kind", nargs="?", metavar="KIND", help="such as normaliser (default: all kinds)")
    takes_plugins(parts)
    answers_json(parts)

    completion = add_verb(
        verbs, "completion", "print a script that completes dsd-lab in a shell", "dsd-lab completion bash"
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell")
    answers_json(completion)

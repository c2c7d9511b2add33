"""Verbs that use finished trials, and those that fetch data and weights."""

from __future__ import annotations

from dsd_lab.cli.arguments import (
    LABELS,
    PROTOCOLS,
    SPEC,
    TRIAL,
    Verbs,
    add_verb,
    checkpoint,
    count,
    positive,
    takes_plugins,
    takes_sampling,
    takes_tracking,
    takes_trial,
)


def add(verbs: Verbs) -> None:
    """Add the verbs."""
    report = add_verb(verbs, "report", "write tables, figures and pages of sweeps", f"dsd-lab report {SPEC}")
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
    sample.add_argument("--labels", choices=LABELS, help="classes of all images (default: balanced)")
    sample.add_argument("--guidance", type=float, help="classifier-free guidance scale (default: 1, none)")
    sample.add_argument("--weights", help="ema, ema:DECAY or trained (default: ema)")
    sample.add_argument("--checkpoint", type=positive, metavar="STEP", help="a kept checkpoint (default: the last)")
    takes_sampling(sample)
    sample.add_argument(
        "--protocol", choices=PROTOCOLS, help="number, labels, sampler and steps of a published protocol"
    )
    sample.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    sample.add_argument(
        "--npz", action="store_true", help="write one .npz for ADM's TensorFlow evaluator (arr_0) instead of PNGs"
    )
    sample.add_argument("--out", metavar="DIR", help="folder for the PNGs (default: HOME/samples/TRIAL)")

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
        "--protocol", choices=PROTOCOLS, help="all settings of a published protocol; needs --reference"
    )
    evaluate.add_argument("--guidance", type=float, action="append", help="guidance scale; repeatable (default: 1)")
    evaluate.add_argument("--images", type=count, metavar="N", help="images, or holdout (default: holdout)")
    evaluate.add_argument("--labels", choices=LABELS, help="classes of N images (default: balanced)")
    evaluate.add_argument("--weights", action="append", help="ema, ema:DECAY or trained; repeatable (default: ema)")
    evaluate.add_argument(
        "--checkpoint",
        type=checkpoint,
        action="append",
        metavar="STEP|all",
        help="a kept checkpoint, or all of them and the last: FID over training; repeatable (default: last)",
    )
    takes_sampling(evaluate)
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
    takes_tracking(evaluate, optional=True)

    fetched = add_verb(
        verbs,
        "fetch-data",
        "download a data set by name, with its licence and pinned hashes; without a name, list them",
        "dsd-lab fetch-data mnist",
    )
    fetched.add_argument("names", nargs="*", metavar="NAME", help="such as mnist or cifar10 (default: list all)")
    fetched.add_argument("--out", metavar="DIR", help="its folder (default: data/NAME)")

    weights = add_verb(
        verbs,
        "fetch-weights",
        "download pinned weights into the home folder",
        "dsd-lab fetch-weights inception",
    )
    weights.add_argument("names", nargs="*", metavar="NAME", help="inception or dinov2 (default: inception)")

    forecast = add_verb(
        verbs,
        "forecast",
        "learn to forecast collapse early from finished trials, and evaluate it by leaving one spec out",
        "dsd-lab forecast --json",
    )
    forecast.add_argument("more", nargs="*", metavar="HOME", help="other home folders to learn from")

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

"""The text of a report, generated from its numbers: notices, answer, method, provenance."""

from __future__ import annotations

from collections import Counter

from dsd_lab.home.sweep_records import Manifest
from dsd_lab.home.trial_folder import OTHER_IMAGES
from dsd_lab.report.flags import flags_of
from dsd_lab.report.groups import Group, effective_control, points_of
from dsd_lab.report.results import Result
from dsd_lab.report.statistics.intervals import clopper_pearson
from dsd_lab.report.statistics.verdicts import latent_state
from dsd_lab.specs.network import Network
from dsd_lab.specs.report import ReportSettings

_UNFINISHED = ("pending", "running", "interrupted", "failed")


def notices(groups: list[Group], settings: ReportSettings) -> list[str]:
    """Warnings before the numbers: trials that are missing, failed, diverged or trained by older code."""
    results = [r for g in groups for r in g.results]
    states = Counter(r.state for r in results)
    unfinished = {s: states[s] for s in _UNFINISHED if states[s]}
    texts = []
    if unfinished:
        parts = ", ".join(f"{n} {s}" for s, n in unfinished.items())
        ended = len(results) - sum(unfinished.values())
        texts.append(f"This report is partial: {ended} of {len(results)} trials have ended ({parts}).")
    if states["interrupted"]:
        texts.append(
            f"{_trials(states['interrupted'])} interrupted before the last step: the same `dsd-lab sweep` resumes from the last checkpoint."
        )
    if states["diverged"]:
        texts.append(
            f"{_trials(states['diverged'])} diverged (a loss was not finite): no verdict, not in any mean; see the table of trials."
        )
    if states["stopped"]:
        texts.append(
            f"{_trials(states['stopped'])} stopped early by a forecast of collapse: no verdict, not in any mean; see the table of trials."
        )
    if states["stale"]:
        texts.append(
            f"{_trials(states['stale'])} trained by an older version of the training code: included in all tables, not retrained."
        )
    texts += [
        f"Trial {r.id} ({r.group}, seed {r.seed}) was trained on other images and is in no table: {r.error}; remove it with `dsd-lab rm`, or give its images another data.name or data.revision."
        for r in results
        if r.state == OTHER_IMAGES
    ]
    recorded = [r.record for r in results if r.description]
    sets = {(d.data.name, d.trial.data.revision) for d in recorded}
    if len(sets) > 1:
        named = ", ".join(f"{name} (revision {revision})" for name, revision in sorted(sets))
        texts.append(
            f"Rows are from {len(sets)} data sets, {named}: differences between them may come from the images."
        )
    if changed := sum(r.code_changes is not None for r in results):
        texts.append(f"{_trials(changed)} resumed with changed training code, as requested; see the provenance.")
    texts += imported_notice(results)
    if unreadable := [f"{r.id}: {reason}" for r in results for reason in dict.fromkeys(r.unreadable)]:
        files = "1 file" if len(unreadable) == 1 else f"{len(unreadable)} files"
        texts.append(
            f"{files} cannot be read and {'is' if len(unreadable) == 1 else 'are'} left out: first {unreadable[0]}."
        )
    if moved := sum(r.device_changes is not None for r in results):
        texts.append(f"{_trials(moved)} resumed on another device; see the provenance.")
    control = effective_control(groups, settings)
    judged = [(g, j) for g in groups if g.variant != control for j in g.judged.values() if j.verdict is not None]
    alone = sum(not j.by_control for _, j in judged)
    if control is not None and alone:
        texts.append(
            f"{_trials(alone)} judged against fixed bounds, because {control!r} of the same seed has no finished trial."
        )
    unknown = sum(
        j.verdict is None and r.finished and latent_state(r, settings.probes) is not None
        for g in groups
        for r in g.results
        for j in (g.judged[r.seed],)
    )
    if unknown:
        texts.append(
            f"{_trials(unknown)} without a verdict: the rank is below {settings.rank_bound:g} x its bound, and without a control and "
            "the rank of the images' patches, which was not recorded, a collapse cannot be distinguished from images of low rank."
        )
    return texts + flags_of(results)


def imported_notice(results: list[Result]) -> list[str]:
    """A line on trials whose numbers are those of others; none where there are none."""
    imported = {r.id: str(r.imported) for r in results if r.imported is not None}
    names = ", ".join(sorted(set(imported.values())))
    line = f"{_trials(len(imported))} imported ({names}), not trained in this home folder: their numbers cannot be checked here."
    return [line] if imported else []


def _trials(count: int) -> str:
    return f"{count} trial" if count == 1 else f"{count} trials"


def answer(groups: list[Group]) -> list[str]:
    """The sweep's answer, one or two sentences per grid point, from the verdict counts."""
    points = points_of(groups)
    texts = []
    for point, members in points.items():
        sentences = " ".join(_answer_at(members))
        texts.append(f"{point}: {sentences}" if point and len(points) > 1 else sentences)
    return texts


def _answer_at(groups: list[Group]) -> list[str]:
    always: dict[int, list[str]] = {}
    never: dict[int, list[str]] = {}
    mixed, missing = [], []
    for group in groups:
        judged = group.with_verdict
        ways = " and ".join(f"{v} {n} of {judged}" for v, n in group.counts.items() if v != "healthy")
        if not judged:
            states = ", ".join(f"{n} {s}" for s, n in group.states.items())
            missing.append(f"{group.variant} ({states})")
        elif group.healthy == judged:
            always.setdefault(judged, []).append(group.variant)
        elif group.healthy == 0:
            never.setdefault(judged, []).append(f"{group.variant} ({ways})")
        else:
            low, high = group.healthy_interval or (0.0, 1.0)
            mixed.append(
                f"{group.variant} (healthy {group.healthy} of {judged}, 95 % interval: {low:.0%} to {high:.0%}; {ways})"
            )
    texts = [
        f"Latents stay healthy in every seed of {_listed(names)}: {_how_surely(n)}." for n, names in always.items()
    ]
    texts += [f"Latents collapse in every seed of {_listed(names)}: {_how_surely(n)}." for n, names in never.items()]
    if mixed:
        texts.append(f"Seeds disagree in {_listed(mixed)}.")
    if missing:
        texts.append(f"There is no verdict for {_listed(missing)}.")
    return texts


def _how_surely(seeds: int) -> str:
    low, high = clopper_pearson(seeds, seeds)
    return f"{seeds} of {seeds} seeds (95 % interval: {low:.0%} to {high:.0%})"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def method_note(groups: list[Group], settings: ReportSettings) -> str:
    """How verdicts and intervals were computed."""
    seeds = sorted({r.seed for g in groups for r in g.results})
    listed = ", ".join(map(str, seeds[:12])) + (", ..." if len(seeds) > 12 else "")
    control = effective_control(groups, settings)
    bounds = (
        f"shrunk below a std of {settings.shrunk_std:g}, scale-runaway above a std of {settings.runaway_std:g}, "
        f"rank-collapsed below {settings.rank_bound:g} x the bound, which is the effective rank of the images' patches (tokens) or of "
        "the images, but at most the number of latent dimensions"
    )
    against = (
        f"Verdicts compare a trial with {control!r} of the same seed: scale-runaway above {settings.runaway:g} x its std, shrunk below "
        f"{settings.shrunk:g} x its std or {settings.capacity:g} x its capacity, rank-collapsed below {settings.rank:g} x its effective "
        f"rank (tokens or images), in this order; the control itself is judged against fixed bounds ({bounds})."
        if control
        else f"The sweep has no control, so verdicts are judged against fixed bounds: {bounds}."
    )
    count = "1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
    return (
        f"Means over {count} ({listed}) with 95 % intervals (Student's t, cut at the bounds of a quantity, such as 1 for an "
        "accuracy); fractions of healthy seeds with Clopper-Pearson intervals. "
        f"Latent values are medians of the last {settings.probes} probes on held-out images. {against} "
        "Collapsed at step: the first probe from which all verdicts, computed in the same way, are unhealthy; median over "
        "collapsed seeds, and below it first and last."
    )


def provenance_lines(results: list[Result], manifest: Manifest) -> list[tuple[str, str]]:
    """Code, versions, machines, data and settings behind the numbers; only those that some trial has recorded."""
    described = [r.record for r in results if r.description]
    origins = [d.provenance for d in described]
    texts = {
        "commit": (
            f"{o.git_commit or 'not from git'}{' with uncommitted changes' if o.git_dirty else ''}" for o in origins
        ),
        "training code": (o.code for o in origins),
        "training code that changed": (f"{r.variant} s{r.seed}: {r.code_changes}" for r in results if r.code_changes),
        "device that changed": (f"{r.variant} s{r.seed}: {r.device_changes}" for r in results if r.device_changes),
        "versions": (", ".join(f"{k} {v}" for k, v in o.versions.items()) for o in origins),
        "machines": (f"{o.device}: {o.machine.processor}, {o.machine.system}, Python {o.python}" for o in origins),
        "data": (
            f"{d.name}: {d.train} training and {d.holdout} held-out images, "
            f"{d.classes} classes, sha256 {d.fingerprint[:16]}"
            + (f", {d.damaged} damaged images left out" if d.damaged else "")
            for d in (record.data for record in described)
        ),
        "latent": (_compression(d.trial.network) for d in described),
    }
    lines = [("sweep", f"{manifest.name}, profile {manifest.profile or 'none'}")]
    joined = [(name, "; ".join(sorted(set(values)))) for name, values in texts.items()]
    return lines + [(name, values) for name, values in joined if values]


def _compression(network: Network) -> str:
    pixels = int(network.image_size or 0) ** 2
    return f"{network.tokens * int(network.latent_channels or 0)} numbers for {pixels} pixels per channel, size {network.size}, {network.layout}"

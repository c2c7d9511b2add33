"""The pages of a report: one self-contained HTML file and the same in Markdown."""

from __future__ import annotations

import base64
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from dsd_lab import __version__
from dsd_lab.report.figures import colours_of
from dsd_lab.report.results import Result
from dsd_lab.report.tables import Column, Group, answer, floors_of, short_labels, show
from dsd_lab.specs.sweep import ReportSettings


def notices(groups: list[Group]) -> list[str]:
    """What a reader must know before the numbers: trials that are missing, failed, diverged or of older code."""
    states = Counter(r.state for g in groups for r in g.results)
    total = sum(states.values())
    told = []
    unfinished = {s: n for s, n in states.items() if s in ("pending", "running", "interrupted", "failed")}
    if unfinished:
        parts = ", ".join(f"{n} {s}" for s, n in sorted(unfinished.items()))
        told.append(
            f"This report is partial: {total - sum(unfinished.values())} of {total} trials have ended ({parts})."
        )
    if states["diverged"]:
        told.append(
            f"{states['diverged']} trials diverged (a loss was not finite): they have no verdict and are in no mean."
        )
    if states["stale"]:
        told.append(f"{states['stale']} trials were trained by other training code than today's.")
    return told


def method_note(groups: list[Group], settings: ReportSettings) -> str:
    """How the table was made, in a sentence or two."""
    seeds = sorted({r.seed for g in groups for r in g.results})
    against = f"against {settings.control!r} of the same seed" if settings.control else "against fixed bounds"
    return (
        f"Means over {len(seeds)} seeds ({', '.join(map(str, seeds[:20]))}) with 95 % intervals (Student's t below 10 seeds, BCa bootstrap from 10 on); "
        f"shares of healthy seeds with Clopper-Pearson intervals. Latent values are medians of the last {settings.probes} probes on held-out images. "
        f"Verdicts are judged {against}: shrunk below {settings.shrunk:g} x its std or {settings.capacity:g} x its capacity, "
        f"rank-collapsed below {settings.rank:g} x its effective rank, scale-runaway above {settings.runaway:g} x its std."
    )


def provenance_lines(results: list[Result], manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Code, versions, machines, data and settings behind the numbers."""
    described = [r.description for r in results if r.description]
    origins = [d["provenance"] for d in described]
    commits = sorted(
        {f"{o['git_commit'] or 'not from git'}{' with uncommitted changes' if o['git_dirty'] else ''}" for o in origins}
    )
    versions = sorted({", ".join(f"{k} {v}" for k, v in o["versions"].items()) for o in origins})
    machines = sorted(
        {f"{o['device']}: {o['machine']['processor']}, {o['machine']['system']}, Python {o['python']}" for o in origins}
    )
    data = sorted(
        {
            f"{d['data']['name']}: {d['data']['train']} training and {d['data']['holdout']} held-out images, {d['data']['classes']} classes, sha256 {d['data']['fingerprint'][:16]}"
            for d in described
        }
    )
    seconds = sum(r.seconds for r in results)
    network = described[0]["fields"]["network"] if described else None
    lines = [
        ("sweep", f"{manifest['name']}, profile {manifest['profile'] or 'none'}"),
        ("commit", "; ".join(commits)),
        ("training code", ", ".join(sorted({o["code"] for o in origins}))),
    ]
    lines += [("versions", "; ".join(versions)), ("machines", "; ".join(machines)), ("data", "; ".join(data))]
    if network:
        numbers = (network["image_size"] // network["patch_size"]) ** 2 * network["latent_channels"]
        lines.append(
            (
                "latent",
                f"{numbers} numbers for {network['image_size'] ** 2} pixels a channel, size {network['size']}, {network['layout']}",
            )
        )
    lines.append(("cost", f"{seconds / 3600:.2f} hours of training over {len(results)} trials"))
    return lines


def page_content(
    groups: list[Group],
    columns: list[Column],
    settings: ReportSettings,
    manifest: dict[str, Any],
    drawn: list[tuple[str, str]],
    folder: Path,
) -> dict[str, Any]:
    """Everything that both pages show."""
    results = [r for g in groups for r in g.results]
    colours = colours_of(groups, settings.control)
    floors = floors_of(results)
    rows = []
    for group in groups:
        cells = []
        for column in columns:
            mean, _, interval = show(group.estimates.get(column.name), column.digits).partition(" ")
            cells.append((mean, interval))
        share = group.healthy_interval
        rows.append(
            {
                "name": group.name,
                "colour": colours[group.variant],
                "counts": list(group.counts.items()),
                "judged": len(group.judged),
                "states": list(group.states.items()),
                "interval": f"[{share[0]:.0%}, {share[1]:.0%}]" if share else None,
                "cells": cells,
            }
        )
    return {
        "title": f"{manifest['name']}" + (f" ({manifest['profile']})" if manifest["profile"] else ""),
        "why": manifest["why"],
        "notices": notices(groups),
        "answer": answer(groups),
        "rows": rows,
        "columns": columns,
        "labels": short_labels(columns),
        "floor_cells": _floor_cells(columns, floors),
        "method": method_note(groups, settings),
        "figures": [(stem, caption, _inline(folder / "figures" / f"{stem}.png")) for stem, caption in drawn],
        "variant_whys": [(name, fields.get("why", "")) for name, fields in manifest["spec"]["variants"].items()],
        "trials": [_trial_row(g, r) for g in groups for r in g.results],
        "provenance": provenance_lines(results, manifest),
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": __version__,
    }


def _trial_row(group: Group, result: Result) -> dict[str, Any]:
    verdict = group.verdicts[result.seed] or "-"
    return {
        "id": result.id,
        "group": result.group,
        "seed": result.seed,
        "state": result.state,
        "error": result.error,
        "verdict": verdict,
        "step": result.step,
        "seconds": f"{result.seconds:.0f}",
    }


def _floor_cells(columns: list[Column], floors: dict[str, float]) -> list[str]:
    """Real-against-real values under the columns that have one at the same N."""
    cells = []
    for column in columns:
        prefix, _, how = column.name.rpartition("/")
        n = next((part for part in how.split("-") if part.startswith("n") and part[1:].isdigit()), None)
        found = [
            v
            for name, v in floors.items()
            if n and name.startswith(f"{prefix}_floor/") and name.split("/")[-1].split("-")[-1] == n
        ]
        cells.append(f"{found[0]:.{column.digits}f}" if found else "")
    return cells if any(cells) else []


def _inline(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def write_html(content: dict[str, Any], path: Path) -> None:
    """One file that makes no external request; everything that comes from a spec is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string((Path(__file__).parent / "page.html").read_text())
    path.write_text(template.render(**content))


def write_markdown(content: dict[str, Any], path: Path) -> None:
    """The same in Markdown, figures by relative path."""
    labels = [content["labels"][c.name] for c in content["columns"]]
    lines = [f"# {content['title']}", "", content["why"], ""]
    lines += [f"> {n}\n" for n in content["notices"]] + [f"**{content['answer']}**", ""]
    first = content["figures"][:1]
    lines += [f"![{caption}](figures/{stem}.png)\n\n*{caption}*\n" for stem, caption, _ in first]
    lines += ["## Verdicts", "", _md_row(["variant", "verdicts", *labels]), _md_row(["---"] * (2 + len(labels)))]
    for row in content["rows"]:
        verdicts = [f"{v} {n}/{row['judged']}" for v, n in row["counts"]] + [f"{n} {s}" for s, n in row["states"]]
        cells = [f"{mean} {interval}".strip() for mean, interval in row["cells"]]
        lines.append(_md_row([row["name"], ", ".join(verdicts), *cells]))
    if content["floor_cells"]:
        lines.append(_md_row(["*real images*", "", *content["floor_cells"]]))
    lines += ["", content["method"], "", "## Figures", ""]
    lines += [f"![{caption}](figures/{stem}.png)\n\n*{caption}*\n" for stem, caption, _ in content["figures"][1:]]
    lines += ["## Variants", ""] + [f"- **{name}**: {why}" for name, why in content["variant_whys"]] + [""]
    lines += [
        "## Trials",
        "",
        _md_row(["trial", "variant", "seed", "state", "verdict", "steps", "seconds"]),
        _md_row(["---"] * 7),
    ]
    lines += [
        _md_row([t["id"], t["group"], t["seed"], t["state"], t["verdict"], t["step"], t["seconds"]])
        for t in content["trials"]
    ]
    lines += ["", "## Provenance", ""] + [f"- {name}: {value}" for name, value in content["provenance"]]
    lines += ["", f"Made {content['made']} by dsd-lab {content['version']}.", ""]
    path.write_text("\n".join(lines))


def _md_row(cells: list[Any]) -> str:
    return "| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |"


def group_json(group: Group) -> dict[str, Any]:
    """A row of `report --json`."""
    return {
        "variant": group.variant,
        "point": group.point,
        "seeds": [
            {"seed": r.seed, "verdict": group.verdicts[r.seed], "state": r.state, "trial": r.id} for r in group.results
        ],
        "metrics": {name: vars(e) for name, e in group.estimates.items()},
    }

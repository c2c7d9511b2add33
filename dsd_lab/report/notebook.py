"""A recorded sweep opened for a notebook: the tables, figures and sentences of its report, one at a time."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from dsd_lab.errors import BadInput
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import find_manifest
from dsd_lab.home.sweep_records import Manifest
from dsd_lab.report.figures.registry import FIGURES
from dsd_lab.report.figures.scaling import scaling_table
from dsd_lab.report.figures.style import Look, looks_of, style
from dsd_lab.report.groups import Column, Group, columns_of, effective_control, groups_of
from dsd_lab.report.page.narrative import answer, method_note, notices, provenance_lines
from dsd_lab.report.results import Result, results_of
from dsd_lab.report.statistics.agreement import theory_table
from dsd_lab.report.statistics.comparisons import compare, comparison_table, conclusions
from dsd_lab.report.statistics.factorial import effect_table, effects_sentence
from dsd_lab.report.statistics.tuning import Tuned, tuned_results, tuning_table
from dsd_lab.report.tables.main import cost_table, evaluation_table, gap_table, trial_table, verdict_table
from dsd_lab.report.tables.published import collapse_table, published_table
from dsd_lab.report.tables.rendering import Table, markdown, markdown_text
from dsd_lab.specs.report import ReportSettings
from dsd_lab.store.mlflow_store import Store


@dataclass(frozen=True)
class Text:
    """Markdown, as a notebook shows it."""

    markdown: str

    def _repr_markdown_(self) -> str:
        return self.markdown


@dataclass(frozen=True)
class Picture:
    """A PNG with its caption, as a notebook shows it."""

    png: bytes
    caption: str

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {"image/png": self.png, "text/plain": self.caption}


@dataclass(frozen=True)
class Opened:
    """One sweep of a home folder, as its report sees it."""

    manifest: Manifest
    results: list[Result]
    settings: ReportSettings

    @cached_property
    def _chosen(self) -> tuple[list[Result], list[Tuned]]:
        """The results that tables and figures show: all, or where the spec tunes an axis, those at the chosen values."""
        return tuned_results(self.results, self.settings)

    @cached_property
    def groups(self) -> list[Group]:
        return groups_of(self._chosen[0], self.settings)

    @cached_property
    def _all_groups(self) -> list[Group]:
        return groups_of(self.results, self.settings)

    @cached_property
    def _columns(self) -> list[Column]:
        return columns_of(self.results)

    @cached_property
    def _looks(self) -> dict[str, Look]:
        return looks_of(self.groups, effective_control(self.groups, self.settings))

    @cached_property
    def _tables(self) -> dict[str, Callable[[], Table | None]]:
        dots = {name: look.colour for name, look in self._looks.items()}
        groups, columns, settings = self.groups, self._columns, self.settings
        return {
            "verdicts": lambda: verdict_table(groups, columns, dots),
            "effects": lambda: effect_table(groups, settings),
            "comparisons": lambda: comparison_table(compare(groups, columns, settings), dots),
            "evaluations": lambda: evaluation_table(groups, columns, dots),
            "rank_gap": lambda: gap_table(groups, settings),
            "theory": lambda: theory_table(groups, settings, dots),
            "scaling": lambda: scaling_table(groups, dots),
            "tuning": lambda: tuning_table(self._chosen[1], settings.tuned) if settings.tuned else None,
            "cost": lambda: cost_table(self._all_groups, dots),
            "published": lambda: published_table(groups, dots),
            "published_collapse": lambda: collapse_table(groups, settings, dots),
            "trials": lambda: trial_table(self._all_groups, columns, settings),
        }

    def origin(self) -> Text:
        """Where the data came from: sweep, code, versions, machines, images; and what a reader must know first."""
        lines = [f"> {markdown_text(n)}" for n in notices(self._all_groups, self.settings)]
        lines += [f"- **{markdown_text(k)}**: {markdown_text(v)}" for k, v in provenance_lines(self.results, self.manifest)]  # fmt: skip
        return Text("\n".join([markdown_text(self.manifest.why), "", *lines]))

    def answer(self) -> Text:
        """The sweep's answer in words, made from its numbers, and how it was found."""
        effects = effects_sentence(effect_table(self.groups, self.settings))
        told = [s for s in (*answer(self.groups), effects) if s]
        told.append(conclusions(compare(self.groups, self._columns, self.settings)))
        return Text("\n\n".join([*map(markdown_text, told), markdown_text(method_note(self.groups, self.settings))]))

    def table(self, name: str) -> Text:
        """A table of the report with its note.

        Raises:
            BadInput: the sweep has no such table.
        """
        made = self._made(name)
        return Text("\n\n".join(filter(None, (f"**{markdown_text(made.title)}**", markdown(made), markdown_text(made.note)))))  # fmt: skip

    def frame(self, name: str) -> pd.DataFrame:
        """The numbers behind a table of the report, as in its CSV file.

        Raises:
            BadInput: the sweep has no such table.
        """
        return self._made(name).frame

    def figure(self, name: str) -> Picture:
        """A figure of the report with its caption.

        Raises:
            BadInput: the sweep has no such figure.
        """
        for stem, caption, draw in FIGURES:
            if stem == name:
                with style():
                    drawn = draw(self.groups, self._looks, self.settings)
                    if drawn is None:
                        raise BadInput(f"{self.manifest.key} has nothing to draw in the figure {name!r}")
                    buffer = io.BytesIO()
                    drawn.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
                return Picture(buffer.getvalue(), caption)
        raise BadInput(f"no figure {name!r}; there are {', '.join(stem for stem, *_ in FIGURES)}")

    def _made(self, name: str) -> Table:
        if name not in self._tables:
            raise BadInput(f"no table {name!r}; there are {', '.join(self._tables)}")
        made = self._tables[name]()
        if made is None:
            raise BadInput(f"{self.manifest.key} has no rows for the table {name!r}")
        return made


def open_sweep(home: str | Path, name: str, profile: str | None = None) -> Opened:
    """Bring the store up to date and read a sweep from it, as `dsd-lab report` does.

    Args:
        home: the home folder.
        name: of the sweep, with or without its profile.
        profile: the one that ran last where it is None.

    Raises:
        BadInput: nothing was recorded under that name.
        StoreUnavailable: the store does not answer.
    """
    folder = Home(Path(home))
    manifest = find_manifest(folder, name, profile)
    store = Store(folder)
    store.sync(manifest)
    with tempfile.TemporaryDirectory() as scratch:
        results = results_of(store, manifest, Path(scratch))
    return Opened(manifest, results, ReportSettings.model_validate(manifest.spec["report"]))

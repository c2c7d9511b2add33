"""The content of a report or notebook: rows, columns and tables, computed once from a sweep's results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from dsd_lab.home.sweep_records import Manifest
from dsd_lab.report.figures.over_training import over_training_table
from dsd_lab.report.figures.regimes import regime_table
from dsd_lab.report.figures.scaling import scaling_table
from dsd_lab.report.figures.style import Look, looks_of
from dsd_lab.report.groups import Column, Group, columns_of, effective_control, groups_of
from dsd_lab.report.own_metrics import own_parts_table
from dsd_lab.report.page.narrative import answer, method_note, notices
from dsd_lab.report.results import Result
from dsd_lab.report.statistics.agreement import theory_table
from dsd_lab.report.statistics.comparisons import Comparison, compare, comparison_table
from dsd_lab.report.statistics.early_signs import sign_table
from dsd_lab.report.statistics.factorial import effect_table, effects_sentence
from dsd_lab.report.statistics.guidance import guidance_table
from dsd_lab.report.statistics.rank_lag import lag_table
from dsd_lab.report.statistics.tuning import Tuned, tuned_results, tuning_table
from dsd_lab.report.statistics.viv import viv_table
from dsd_lab.report.tables.main import cost_table, evaluation_table, gap_table, trial_table, verdict_table
from dsd_lab.report.tables.published import collapse_table, published_table
from dsd_lab.report.tables.rendering import Table
from dsd_lab.specs.report import ReportSettings


@dataclass(frozen=True)
class Content:
    """The content of one sweep's report; tables are computed on demand and cached."""

    manifest: Manifest
    results: list[Result]
    settings: ReportSettings

    @cached_property
    def _chosen(self) -> tuple[list[Result], list[Tuned]]:
        """The results in tables and figures: all, or, if the spec tunes an axis, those at the chosen values."""
        return tuned_results(self.results, self.settings)

    @cached_property
    def groups(self) -> list[Group]:
        """Rows of the tables and figures."""
        return groups_of(self._chosen[0], self.settings)

    @cached_property
    def all_groups(self) -> list[Group]:
        """Rows for all trials, including those at values that were not chosen."""
        return groups_of(self.results, self.settings) if self._chosen[1] else self.groups

    @cached_property
    def columns(self) -> list[Column]:
        return columns_of(self._chosen[0])

    @cached_property
    def looks(self) -> dict[str, Look]:
        return looks_of(self.groups, effective_control(self.groups, self.settings))

    @cached_property
    def comparisons(self) -> list[Comparison]:
        return compare(self.groups, self.columns, self.settings)

    @cached_property
    def makers(self) -> dict[str, Callable[[], Table | None]]:
        """Table name -> function that makes the table, in reading order; it returns None without rows."""
        dots = {name: look.colour for name, look in self.looks.items()}
        groups, columns, settings = self.groups, self.columns, self.settings
        return {
            "verdicts": lambda: verdict_table(groups, columns, dots),
            "effects": lambda: self.effects,
            "comparisons": lambda: comparison_table(self.comparisons, dots),
            "map": lambda: regime_table(groups, settings),
            "evaluations": lambda: evaluation_table(groups, columns, dots),
            "over_training": lambda: over_training_table(groups, dots),
            "guidance": lambda: guidance_table(groups, dots),
            "viv": lambda: viv_table(groups, settings),
            "rank_gap": lambda: gap_table(groups, settings),
            "theory": lambda: theory_table(groups, settings, dots),
            "scaling": lambda: scaling_table(groups, dots),
            "tuning": lambda: tuning_table(self._chosen[1], settings.tuned) if settings.tuned else None,
            "cost": lambda: cost_table(self.all_groups, dots),
            "published": lambda: published_table(groups, dots),
            "published_collapse": lambda: collapse_table(groups, settings, dots),
            "own_parts": lambda: own_parts_table(self.results),
            "trials": lambda: trial_table(self.all_groups, columns, settings),
        }

    @cached_property
    def notebook_makers(self) -> dict[str, Callable[[], Table | None]]:
        """The same for tables of notebooks only: they read the whole history of every trial."""
        dots = {name: look.colour for name, look in self.looks.items()}
        return {
            "early_signs": lambda: sign_table(self.groups, self.settings, dots),
            "rank_lag": lambda: lag_table(self.groups),
        }

    @cached_property
    def tables(self) -> dict[str, Table]:
        """The tables that have rows."""
        return {name: table for name, make in self.makers.items() if (table := make()) is not None}

    @cached_property
    def effects(self) -> Table | None:
        return effect_table(self.groups, self.settings)

    @property
    def sentences(self) -> list[str]:
        """The answer in sentences, generated from the numbers."""
        return [sentence for sentence in (*answer(self.groups), effects_sentence(self.effects)) if sentence]

    @property
    def method(self) -> str:
        """How the verdicts and intervals were computed."""
        return method_note(self.groups, self.settings)

    @property
    def notices(self) -> list[str]:
        """Warnings to read first."""
        return notices(self.all_groups, self.settings)

"""A recorded sweep in a notebook: the tables, figures and sentences of its report, one at a time."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dsd_lab.errors import BadInput
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import find_manifest, find_manifests
from dsd_lab.report.content import Content
from dsd_lab.report.figures.registry import FIGURES, NOTEBOOK_FIGURES
from dsd_lab.report.figures.style import Look, looks_of, notes_of, style
from dsd_lab.report.groups import Group
from dsd_lab.report.page.narrative import provenance_lines
from dsd_lab.report.results import stored_results
from dsd_lab.report.statistics.comparisons import conclusions
from dsd_lab.report.statistics.forecast_theory import forecast_table
from dsd_lab.report.statistics.rank_lag import lag_table
from dsd_lab.report.statistics.viv import viv_table
from dsd_lab.report.tables.rendering import Table, markdown, markdown_text
from dsd_lab.specs.report import ReportSettings
from dsd_lab.store import short_timeouts
from dsd_lab.store.mlflow_store import Store


@dataclass(frozen=True)
class Text:
    """Markdown that a notebook renders."""

    markdown: str

    def _repr_markdown_(self) -> str:
        return self.markdown


@dataclass(frozen=True)
class Picture:
    """A PNG with its caption that a notebook renders."""

    png: bytes
    caption: str

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {"image/png": self.png, "text/plain": self.caption}


def _picture(name: str, groups: list[Group], looks: dict[str, Look], settings: ReportSettings, where: str) -> Picture:
    """A figure by its name.

    Raises:
        BadInput: there is no such figure, or nothing for it to show.
    """
    for stem, caption, draw in (*FIGURES, *NOTEBOOK_FIGURES):
        if stem == name:
            with style():
                drawn = draw(groups, looks, settings)
                if drawn is None:
                    raise BadInput(f"{where} has nothing to draw in the figure {name!r}")
                buffer = io.BytesIO()
                drawn.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
            return Picture(buffer.getvalue(), f"{caption} {notes_of(drawn)}".strip())
    raise BadInput(f"no figure {name!r}; there are {', '.join(stem for stem, *_ in (*FIGURES, *NOTEBOOK_FIGURES))}")


def _shown(made: Table) -> Text:
    """A table with its title and note."""
    return Text(
        "\n\n".join(filter(None, (f"**{markdown_text(made.title)}**", markdown(made), markdown_text(made.note))))
    )


class Opened(Content):
    """The content of a sweep's report, for a notebook."""

    def origin(self) -> Text:
        """Warnings, and provenance of the data: sweep, code, versions, machines, images."""
        lines = [f"> {markdown_text(n)}" for n in self.notices]
        lines += [f"- **{markdown_text(k)}**: {markdown_text(v)}" for k, v in provenance_lines(self.results, self.manifest)]  # fmt: skip
        return Text("\n".join([markdown_text(self.manifest.why), "", *lines]))

    def answer(self) -> Text:
        """The sweep's answer in sentences, generated from its numbers, and the method."""
        return Text("\n\n".join(map(markdown_text, (*self.sentences, conclusions(self.comparisons), self.method))))

    def table(self, name: str) -> Text:
        """A table of the report with its note.

        Raises:
            BadInput: the sweep has no such table.
        """
        return _shown(self._made(name))

    def frame(self, name: str) -> pd.DataFrame:
        """The numbers of a table of the report, as in its CSV file.

        Raises:
            BadInput: the sweep has no such table.
        """
        return self._made(name).frame

    def figure(self, name: str) -> Picture:
        """A figure of the report with its caption.

        Raises:
            BadInput: the sweep has no such figure.
        """
        return _picture(name, self.groups, self.looks, self.settings, self.manifest.key)

    def _made(self, name: str) -> Table:
        makers = self.makers | self.notebook_makers
        if name not in makers:
            raise BadInput(f"no table {name!r}; there are {', '.join(makers)}")
        made = makers[name]()
        if made is None:
            raise BadInput(f"{self.manifest.key} has no rows for the table {name!r}")
        return made


def open_sweep(home: str | Path, name: str, profile: str | None = None) -> Opened:
    """Sync the store and read a sweep from it, as `dsd-lab report` does.

    Raises:
        BadInput: there is no sweep with that name.
        StoreUnavailable: the store does not answer.
    """
    folder = Home(Path(home))
    manifest = find_manifest(folder, name, profile)
    with short_timeouts(), stored_results(Store(folder), manifest) as results:
        pass
    return Opened(manifest, results, ReportSettings.model_validate(manifest.spec["report"]))


@dataclass(frozen=True)
class Together:
    """All sweeps of a home folder, for questions that are about trials and not about one design."""

    sweeps: list[Opened]

    @property
    def groups(self) -> list[Group]:
        return [group for sweep in self.sweeps for group in sweep.groups]

    def origin(self) -> Text:
        """Where the data of every sweep came from."""
        return Text("\n\n".join(f"**{s.manifest.key}**\n\n{s.origin().markdown}" for s in self.sweeps))

    def figure(self, name: str) -> Picture:
        """A figure over the trials of all sweeps: `viv` or `normalisers`.

        Raises:
            BadInput: there is no such figure, or nothing for it to show.
        """
        looks = looks_of(self.groups, "control")
        return _picture(name, self.groups, looks, ReportSettings(), "this home folder")

    def table(self, name: str) -> Text:
        """A table over the trials of all sweeps: `viv` or `rank_lag`.

        Raises:
            BadInput: there is no such table, or there are no rows for it.
        """
        makers = {"viv": lambda: viv_table(self.groups, ReportSettings()), "rank_lag": lambda: lag_table(self.groups)}
        if name not in makers:
            raise BadInput(f"no table {name!r} over several sweeps; there are {', '.join(makers)}")
        made = makers[name]()
        if made is None:
            raise BadInput(f"this home folder has no rows for the table {name!r}")
        return _shown(made)

    def forecasts(self) -> Text:
        """How well the end of a trial can be told from its beginning, by what is learnt and by the closed forms."""
        return _shown(forecast_table((s.manifest.name, s.results, s.settings) for s in self.sweeps))


def open_home(home: str | Path, name: str | None = None) -> Together:
    """All sweeps of a home folder, or those of one spec's profiles, as `open_sweep` reads one.

    Raises:
        BadInput: nothing was recorded there.
        StoreUnavailable: the store does not answer.
    """
    manifests = find_manifests(Home(Path(home)), name)
    return Together([open_sweep(home, m.key) for m in sorted(manifests, key=lambda m: m.key)])

"""A recorded sweep in a notebook: the tables, figures and sentences of its report, one at a time."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dsd_lab.errors import BadInput
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import find_manifest
from dsd_lab.report.content import Content
from dsd_lab.report.figures.registry import FIGURES
from dsd_lab.report.figures.style import style
from dsd_lab.report.page.narrative import provenance_lines
from dsd_lab.report.results import results_of
from dsd_lab.report.statistics.comparisons import conclusions
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
        made = self._made(name)
        return Text("\n\n".join(filter(None, (f"**{markdown_text(made.title)}**", markdown(made), markdown_text(made.note)))))  # fmt: skip

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
        for stem, caption, draw in FIGURES:
            if stem == name:
                with style():
                    drawn = draw(self.groups, self.looks, self.settings)
                    if drawn is None:
                        raise BadInput(f"{self.manifest.key} has nothing to draw in the figure {name!r}")
                    buffer = io.BytesIO()
                    drawn.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
                return Picture(buffer.getvalue(), caption)
        raise BadInput(f"no figure {name!r}; there are {', '.join(stem for stem, *_ in FIGURES)}")

    def _made(self, name: str) -> Table:
        if name not in self.makers:
            raise BadInput(f"no table {name!r}; there are {', '.join(self.makers)}")
        made = self.makers[name]()
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
    with short_timeouts(), tempfile.TemporaryDirectory() as scratch:
        store = Store(folder)
        store.sync(manifest)
        results = results_of(store, manifest, Path(scratch))
    return Opened(manifest, results, ReportSettings.model_validate(manifest.spec["report"]))

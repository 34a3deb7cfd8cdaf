"""The commands of ``fgvar`` that show a stored dataset: as text, as figures, as a page. None of them needs torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fgvar.commands import Output, Printed
from fgvar.measurement.text_tables import CommandResult


@dataclass(frozen=True)
class Open:
    """Sum up a dataset: a measurement, training runs (the last epoch and probe), or any other netCDF file."""

    dataset: tyro.conf.Positional[Path]
    """The netCDF file."""
    layer: tuple[str, ...] = ()
    """Parameters by name, "perturbed" (all that schemes estimate; the default), "total", or "all" of these."""
    output: Printed = Output()

    def answer(self) -> CommandResult:
        import fgvar
        from fgvar.measurement.report import provenance_line, rows, to_text

        dataset = fgvar.open_dataset(self.dataset)
        return CommandResult(
            f"{provenance_line(dataset)}\n\n{to_text(dataset, self.layer)}".lstrip(), rows(dataset, self.layer)
        )


@dataclass(frozen=True)
class Plot:
    """Draw a dataset as figures: PDF with embedded fonts and PNG, with the caption in a text beside them."""

    dataset: tyro.conf.Positional[Path]
    """The netCDF file, of `fgvar measure --out`, fgvar.train or fgvar.sweep."""
    kind: str | None = None
    """layers, training, ranking, sweep, tradeoff or draws; "all" that fit. Default: what fits the dataset best."""
    at: tuple[str, ...] = ()
    """Which of several measurements, as algorithm=BP step=100."""
    layer: str | None = None
    """A parameter by name, "perturbed" (all that estimators estimate; the default) or "total"."""
    by: str | None = None
    """Of a ranking: the quantity, as efficiency."""
    x: str | None = None
    """Of a sweep: its axis, and the quantity over it."""
    y: str | None = None
    venue: str = "iclr"
    """Whose widths and fonts: iclr, neurips, icml or jmlr."""
    columns: Literal[1, 2] = 2
    """1: a column, or half of the text width; 2: all of it."""
    out: Path | None = None
    """A file .pdf, .svg or .png, or a name without suffix for PDF and PNG. Default: beside the dataset."""
    output: Printed = Output()

    def answer(self) -> CommandResult:
        from fgvar.plot.from_file import drawn

        for text in self.at:
            if "=" not in text:
                raise ValueError(f"--at names {text!r} without a label, expected axis=label, as --at {text}=2")
        options = {"layer": self.layer, "by": self.by, "x": self.x, "y": self.y}
        paths = drawn(
            self.dataset,
            self.out,
            kind=self.kind,
            at=self.at,
            page=(self.venue, self.columns),
            options={name: value for name, value in options.items() if value is not None},
        )
        return CommandResult("\n".join(map(str, paths)), [{"file": str(path)} for path in paths])


@dataclass(frozen=True)
class Report:
    """Write a dataset as one self-contained HTML page: tables that sort, every fitting figure, how to read them."""

    dataset: tyro.conf.Positional[Path]
    """The netCDF file."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The page. Default: beside the dataset, by its name."""
    title: str = ""
    """Of the page. Default: the study that made the dataset, or its name."""
    output: Printed = Output()

    def answer(self) -> CommandResult:
        import fgvar
        from fgvar import pages
        from fgvar.pages.page import require_page

        path = self.dataset.with_suffix(".html") if self.out is None else self.out
        require_page(path)
        dataset = fgvar.open_dataset(self.dataset)
        title = self.title or str(dataset.attrs.get("study", self.dataset.stem))
        pages.write(pages.of_dataset(dataset, title), path)
        return CommandResult(str(path), [{"page": str(path)}])

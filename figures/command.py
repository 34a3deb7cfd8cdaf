"""The command line that all figures share: a dataset in, PDF, PNG and caption out, and LaTeX of a table."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from fgvar import plot
from fgvar.measurement import tabular
from fgvar.plot import datasets, venues
from fgvar.storage import replace, require_place
from figures.page import Figures, Table


@dataclass(frozen=True)
class Config:
    """Draw a study's figures from its dataset."""

    dataset: tyro.conf.Positional[Path]
    """The netCDF file that the study of the same name wrote."""
    venue: venues.Venue = "iclr"
    """Whose text width and font sizes to keep to."""
    columns: venues.Columns = 2
    """2: the whole text width; 1: one column, or half of the text width."""
    out: Path | None = None
    """An existing folder, or path and name without a suffix. Default: beside the dataset, by its name."""


def write(config: Config, figures: Figures, table: Table | None = None) -> None:
    """Write the figures with their captions, and the table as LaTeX; print the paths."""
    dataset, stem = datasets.read(config.dataset), config.dataset.with_suffix("")
    if config.out is not None:
        stem = config.out / stem.name if config.out.is_dir() else config.out
    tables = [Path(f"{stem}.tex")] if table is not None else []
    pictures = [Path(f"{stem}{suffix}.{kind}") for suffix in figures for kind in ("pdf", "png", "txt")]
    for path in (*pictures, *tables):
        require_place(path)
    try:
        for suffix, (draw, caption) in figures.items():
            figure = draw(dataset, venue=config.venue, columns=config.columns)
            print(*plot.save(figure, f"{stem}{suffix}", caption(dataset)), sep="\n")
        if table is not None:
            replace(tables[0], [tabular.latex(table(dataset)).encode()], sync=False)
            print(tables[0])
    except LookupError as error:  # the labels that each figure names are more than could be asked for before
        raise ValueError(f"{config.dataset} is not a dataset that these figures show: it lacks {error}") from error


def run(module: str, description: str | None, figures: Figures, table: Table | None = None) -> None:
    """What ``python -m figures.…`` does; what the user can mend is one line."""
    try:
        write(tyro.cli(Config, description=description), figures, table)
    except (OSError, ValueError) as error:
        sys.exit(f"{module}: {error}")

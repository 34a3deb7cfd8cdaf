"""Figures of stored datasets: whatever they draw lies within the page and under its legend."""

from importlib import import_module
from pathlib import Path

import pytest
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from fgvar.measurement import tabular
from fgvar.plot import datasets, venues
from figures.__main__ import OTHERS

DATA = Path(__file__).parents[2] / "figures/data"
NAMES = (
    "local_losses",
    "groups",
    "fused_losses",
    "guesses",
    "all_schemes",
    "directions",
    "table1",
    "table3",
    "table3_long",
    "table4",
    "scaling",
    "cost",
    "calibration",
    "language_model",
    "audit",
    "streams",
    "initialisation",
    "collocation",
    "extrapolation",
    "private",
    "rdp",
    "pruning",
    "unlearning",
    "regularisation",
)


def shown(axis: Axis) -> list[Text]:
    """Tick labels within the limits: others are not painted."""
    low, high = sorted(axis.get_view_interval())
    return [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("venue", "columns"), [("iclr", 2), ("icml", 1)])
def test_nothing_is_clipped_and_the_legend_stands_above(
    name: str, venue: venues.Venue, columns: venues.Columns
) -> None:
    dataset = datasets.read(DATA / f"{name}.nc")
    for draw, _ in import_module(f"figures.{OTHERS.get(name, name)}").FIGURES.values():
        figure = draw(dataset, venue=venue, columns=columns)
        assert figure.get_figwidth() == venues.width(venue, columns)
        renderer = FigureCanvasAgg(figure).get_renderer()
        tops = []
        for axes in figure.axes:
            inside = [axes.title, axes.xaxis.label, axes.yaxis.label, *shown(axes.xaxis), *shown(axes.yaxis)]
            inside += [text for legend in figure.legends for text in legend.get_texts()]
            for text in inside:
                box = text.get_window_extent(renderer)
                if text.get_text() and text.get_visible() and box.width:
                    assert box.x0 >= -1, text.get_text()
                    assert box.y0 >= -1, text.get_text()
                    assert box.x1 <= figure.bbox.x1 + 1, text.get_text()
                    assert box.y1 <= figure.bbox.y1 + 1, text.get_text()
                    assert text.get_fontname() == "STIXGeneral"
            tops.append(axes.get_window_extent(renderer).y1)
        for legend in figure.legends:
            assert max(tops) < legend.get_window_extent(renderer).y0


@pytest.mark.parametrize("name", ["table1", "table3", "table4", "all_schemes", "scaling", "cost", "language_model"])
def test_tables_are_whole_in_latex(name: str) -> None:
    """Every row has the cells of the heads, and nothing is left that LaTeX would take for a command of its own."""
    frame = import_module(f"figures.{name}").table(datasets.read(DATA / f"{name}.nc"))
    text = tabular.latex(frame)
    lines = text.splitlines()
    assert lines[0] == r"\begin{tabular}{l" + "r" * frame.shape[1] + "}"
    assert [line for line in lines if line.endswith("rule")] == [r"\toprule", r"\midrule", r"\bottomrule"]
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    assert len(body) == len(frame)
    for line, row in zip(body, frame.index, strict=True):
        assert line.count(" & ") == frame.shape[1]
        assert line.startswith(row.replace("_", r"\_").replace("×", r"$\times$"))
    assert text.isascii()
    assert tabular.markdown(frame).count("\n") == len(frame) + 1

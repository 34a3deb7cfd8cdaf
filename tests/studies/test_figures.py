"""Figures: what is drawn, how large, in which fonts, and that they are functions of the dataset alone."""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

import fgvar
from fgvar import plot
from fgvar.measurement import FLAGS
from fgvar.plot import datasets, intervals, looks, venues
from figures import quickstart

ROOT = Path(__file__).resolve().parents[2]
SCHEMES = ("FG-W", "FG-A", "LG-FG-W", "LG-FG-A", "LG-BP")
LAYERS = ("block0.channel.weight", "block0.token.bias", "head.weight", "perturbed", "total")


def synthetic(steps: tuple[int, ...] = (1, 4, 20, 100), epochs: int = 5) -> xr.Dataset:
    """A dataset in the contract's form: LG-BP without noise, a dead token bias, heads that learn exactly."""
    rng = np.random.default_rng(0)
    algorithms, references = ("BP", "LG-FG-A"), ("target", "backprop")
    dims = {"algorithm": algorithms, "step": steps, "estimator": SCHEMES, "reference": references, "layer": LAYERS}
    full = tuple(len(values) for values in dims.values())
    by_layer = (*full[:3], full[4])
    cosine = np.clip(rng.uniform(0.005, 0.5, full), 0, 1)
    variance = 10 ** rng.uniform(0, 4, by_layer)
    p = rng.uniform(0.01, 1, full)
    cosine[:, :, 4, 0], variance[:, :, 4], p[:, :, 4] = 1, 0, np.nan
    cosine[..., 1], variance[..., 1] = np.nan, np.nan
    cosine[..., 2], variance[..., 2] = 1, 1e-14
    flag = np.zeros(full, "int8")
    flag[:, :, 4], flag[..., 2] = FLAGS["no_noise"], FLAGS["no_noise"]
    flag[..., 1] |= FLAGS["dead"]
    four = ("algorithm", "step", "estimator", "layer")
    curve = np.linspace(0.9, 0.05, epochs + 1)
    return xr.Dataset(
        {
            "train_error": (("algorithm", "epoch"), np.stack([curve, curve / 2])),
            "test_error": (("algorithm", "epoch"), np.stack([curve, curve / 2 + 0.02])),
            "cosine": (tuple(dims), cosine),
            "cosine_se": (tuple(dims), 0.05 * cosine),
            "bias_p": (tuple(dims), p),
            "relative_variance": (four, variance),
            "relative_variance_se": (four, 0.1 * variance),
            "gradient_norm": (tuple(dims), rng.uniform(0.5, 1, full)),
            "bias_z": (tuple(dims), p),
            "flag": (tuple(dims), flag),
            "cosine_null": ("layer", [0.05, 0.9, 0.1, 0.04, 0.04]),
            "size": ("layer", [1500, 4, 400, 2400, 2800]),
        },
        coords={name: list(values) for name, values in dims.items()} | {"epoch": range(epochs + 1)},
        attrs={
            "draws": 64, "seed": 0, "batch_size": 32, "route": "drawn", "data": "digits", "train_epochs": epochs,
            "estimators": f"FG-W: {fgvar.scheme('FG-W')!r}",
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def dataset() -> xr.Dataset:
    return synthetic()


@pytest.fixture(scope="module", params=[("iclr", 2), ("icml", 1), ("neurips", 2), ("jmlr", 1)], ids=str)
def size(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(zip(("venue", "columns"), request.param, strict=True))


@pytest.fixture(scope="module")
def figures(dataset: xr.Dataset, size: dict[str, Any]) -> list[Figure]:
    """Both figures of the quickstart, in each size."""
    return [draw(dataset, **size) for draw, _ in quickstart.FIGURES.values()]


def panels(figure: Figure) -> dict[str, object]:
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def shown(axis: Axis) -> list[Text]:
    """The tick labels of an axis that are painted: those within its limits."""
    low, high = sorted(axis.get_view_interval())
    labels = [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [label for label in labels if label.get_visible() and label.get_text()]


def test_what_is_drawn(dataset: xr.Dataset) -> None:
    figure = quickstart.draw(dataset)
    assert len(figure.axes) == 8
    titled = panels(figure)
    assert list(titled) == ["error (%)", "cosine to target", "cosine to backprop", "relative variance"]
    variance = titled["relative variance"]
    assert (variance.get_xscale(), variance.get_yscale()) == ("log", "log")
    lines = {line.get_label(): line for line in variance.lines}
    assert set(lines) == {"FG-W", "FG-A", "LG-FG-W", "LG-FG-A", "FG-W, theory", "LG-BP, 0"}
    assert set(lines["LG-BP, 0"].get_ydata()) == {variance.get_ylim()[0]}, "without noise: on the edge of a log axis"
    chosen = dataset["relative_variance"].sel(algorithm="BP", layer="perturbed", estimator="FG-A")
    np.testing.assert_array_equal(lines["FG-A"].get_xdata(), dataset["step"])
    np.testing.assert_array_equal(lines["FG-A"].get_ydata(), chosen)
    assert lines["FG-W, theory"].get_ydata()[0] == 2401
    assert len(variance.collections) == 4, "a band for each drawn scheme"
    band = variance.collections[1].get_paths()[0].vertices[:, 1]
    error = dataset["relative_variance_se"].sel(algorithm="BP", layer="perturbed", estimator="FG-A")
    assert band.max() == pytest.approx(float((chosen + 1.96 * error).max()))
    error_panel = titled["error (%)"]
    assert {line.get_label() for line in error_panel.lines} == {"train error", "test error"}
    assert error_panel.get_ylabel() == "trained by BP"
    assert [axes.get_xlabel() for axes in figure.axes[4:]] == ["epoch"] + 3 * ["training step"]


def test_layers_by_row(dataset: xr.Dataset) -> None:
    figure = plot.layers(dataset.isel(algorithm=-1, step=-1))
    titles = ["$p$-value of bias", "relative variance", "cosine to target", "cosine to backprop"]
    assert [axes.get_title() for axes in figure.axes] == titles
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert rows == ["block0.channel.weight", "block0.token.bias", "perturbed", "total"], "heads learn exactly"
    assert [text.get_text() for text in figure.axes[1].texts] == ["undefined"]
    ticks = dict(zip(figure.axes[1].get_xticks(), figure.axes[1].get_xticklabels(), strict=True))
    assert ticks[figure.axes[1].get_xlim()[0]].get_text() == "0", "which stands apart"


def test_size_fonts_and_nothing_clipped(figures: list[Figure], size: dict[str, Any]) -> None:
    for figure in figures:
        assert figure.get_figwidth() == pytest.approx(venues.width(**size))
        renderer = FigureCanvasAgg(figure).get_renderer()
        whole = figure.bbox
        texts = [text for axes in figure.axes for text in (axes.title, axes.xaxis.label, axes.yaxis.label)]
        ticks = [label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in shown(axis)]
        legend = figure.legends[0]
        for text in [*texts, *ticks, *legend.get_texts()]:
            if not text.get_text() or not text.get_visible():
                continue
            box = text.get_window_extent(renderer)
            assert box.x0 >= -1, (text.get_text(), size)
            assert box.y0 >= -1, (text.get_text(), size)
            assert box.x1 <= whole.x1 + 1, (text.get_text(), size)
            assert box.y1 <= whole.y1 + 1, (text.get_text(), size)
            assert text.get_fontname() == "STIXGeneral"
        top = legend.get_window_extent(renderer).y0
        assert all(axes.get_window_extent(renderer).y1 < top for axes in figure.axes), "legend outside the axes"
        for axes in figure.axes:
            boxes = sorted((label.get_window_extent(renderer) for label in shown(axes.xaxis)), key=lambda box: box.x0)
            assert all(a.x1 <= b.x0 for a, b in pairwise(boxes)), f"tick labels overlap at {size}"


def test_labels_do_not_touch(figures: list[Figure], size: dict[str, Any]) -> None:
    for figure in figures:
        renderer = FigureCanvasAgg(figure).get_renderer()
        kinds = [(axes.title, axes._right_title, axes.xaxis.label, axes.yaxis.label) for axes in figure.axes]
        texts = [text for kind in kinds for text in kind if text.get_text()]
        boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
        for i, (name, box) in enumerate(boxes):
            for other, second in boxes[i + 1 :]:
                assert not box.overlaps(second), (name, other, size)


def test_undefined_numbers_are_left_out(dataset: xr.Dataset) -> None:
    """All of one scheme, and all errors of another; warnings are errors here."""
    holes = dataset.copy(deep=True)
    for name in ("cosine", "relative_variance", "bias_p"):
        holes[name].loc[{"estimator": "FG-A"}] = np.nan
    for name in ("cosine_se", "relative_variance_se"):
        holes[name].loc[{"estimator": "LG-FG-A"}] = np.nan
    figure = quickstart.draw(holes)
    drawn = {line.get_label() for line in panels(figure)["relative variance"].lines}
    assert drawn == {"FG-W", "LG-FG-W", "LG-FG-A", "FG-W, theory", "LG-BP, 0"}
    said = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert [text for text in said if text != "?"] == 6 * ["FG-A: NaN"], "no silent gap, nor a reason that nobody gave"
    assert said.count("?") == 2 * 3 * 4, "numbers of LG-FG-A without errors, of each run, quantity and step"
    plot.layers(holes.isel(algorithm=0, step=-1))
    assert "Missing numbers, which their places say: " in quickstart.caption(holes)


def with_intervals(dataset: xr.Dataset) -> xr.Dataset:
    """Twice as far up as down."""
    ends = {f"{k}{end}": dataset[k] * f for k in ("cosine", "relative_variance") for end, f in ENDS.items()}
    return dataset.assign(ends)


ENDS = {"_low": 0.9, "_high": 1.2}


def test_intervals_are_drawn_where_there_are_some(dataset: xr.Dataset) -> None:
    whole = with_intervals(dataset)
    variance = panels(quickstart.draw(whole))["relative variance"]
    chosen = dataset["relative_variance"].sel(algorithm="BP", layer="perturbed", estimator="FG-A")
    band = variance.collections[1].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(float(1.2 * chosen.max()))
    assert band.min() == pytest.approx(float(0.9 * chosen.min()))
    rows = plot.layers(whole.isel(algorithm=0, step=-1)).axes[1]
    last = whole["relative_variance"].isel(algorithm=0, step=-1).sel(estimator="FG-A", layer="perturbed").item()
    segments = [path.vertices[:, 0] for bars in rows.collections for path in bars.get_paths()]
    assert any(np.allclose(np.sort(ends), [0.9 * last, 1.2 * last]) for ends in segments)
    assert "Bands: 95 % intervals." in quickstart.caption(whole)
    assert "(95 % intervals)" in quickstart.caption(whole)


def test_ends_of_what_has_errors_alone(dataset: xr.Dataset) -> None:
    low, high = intervals.ends(dataset, "cosine")
    np.testing.assert_allclose(high - low, 2 * 1.96 * dataset["cosine_se"])
    its = xr.Dataset({"v": 726.4, "v_se": 31.0})
    assert intervals.written(its, "v") == "726 ± 61"
    assert intervals.written(its.assign(v_low=671.2, v_high=788.4), "v") == "726 [671, 788]"
    assert intervals.written(its.assign(v_low=np.nan, v_high=np.nan), "v") == "726"
    np.testing.assert_allclose(
        intervals.bars([1, 1, 0], ([0.5, np.nan, 0.1], [3, np.nan, 0.2])), [[0.5, 0, 0], [2, 0, 0.2]]
    )


def test_intervals_of_a_mean_over_seeds() -> None:
    """Arms add as those of independent values do."""
    each = {"v": ("seed", [1.0, 3.0]), "v_se": ("seed", [3.0, 4.0])}
    ends = {"v_low": ("seed", [1.0 - 3, 3.0 - 4]), "v_high": ("seed", [1.0 + 6, 3.0 + 8])}
    found = intervals.over_seeds(xr.Dataset(each | ends, {"seed": [0, 1]}))
    assert {name: found[name].item() for name in found} == {"v": 2, "v_se": 2.5, "v_low": -0.5, "v_high": 7}


def test_captions_say_how_numbers_came(dataset: xr.Dataset) -> None:
    text = quickstart.caption(dataset)
    for words in ("drawn", "n = 64 draws", "±1.96 standard errors", "Šidák", "FG-W in theory"):
        assert words in text, words
    assert re.search(r"smallest p = 0\.01\d* \((FG|LG)-\S+, \S+, step \d+, trained by \S+\)", text), text
    by_layer = quickstart.caption_layers(dataset)
    assert "Of training by LG-FG-A, step 100" in by_layer
    assert "(undefined: their reference is 0" in by_layer
    assert "No row: head.weight" in by_layer
    smoke = dataset.assign_attrs(configuration="Config(smoke=True)")
    assert quickstart.caption(smoke).startswith("A smoke run")


def test_files_are_the_same_in_every_run(dataset: xr.Dataset, tmp_path) -> None:
    for name in ("one", "two"):
        paths = plot.save(quickstart.draw(dataset), tmp_path / name, quickstart.caption(dataset))
        assert [path.suffix for path in paths] == [".pdf", ".png", ".txt"]
    for suffix in (".pdf", ".png", ".txt"):
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes(), suffix
    pdf = (tmp_path / "one.pdf").read_bytes()
    assert b"/FontFile2" in pdf, "TrueType, embedded"
    assert b"/Type3" not in pdf


def test_a_smoke_dataset_draws() -> None:
    dataset = synthetic(steps=(1,), epochs=1).isel(algorithm=[1])
    assert len(quickstart.draw(dataset).axes) == 4


def test_every_scheme_has_its_own_look() -> None:
    pairs = [(look.color, look.marker) for look in looks.SCHEMES.values()]
    assert len(set(pairs)) == len(pairs)
    assert len({look.marker for look in looks.SCHEMES.values()}) == len(pairs), "nothing rests on colour alone"
    with pytest.raises(ValueError, match=r"no look for scheme 'mine'.*fgvar\.plot\.assign"):
        looks.look("mine")


def test_settings_do_not_leak(dataset: xr.Dataset) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    quickstart.draw(dataset)
    assert dict(mpl.rcParams) == before


def test_foreign_data_is_refused(dataset: xr.Dataset, tmp_path) -> None:
    with pytest.raises(ValueError, match="lacks variable 'train_error'"):
        quickstart.draw(dataset.drop_vars("train_error"))
    with pytest.raises(ValueError, match="unknown venue 'nature'"):
        quickstart.draw(dataset, venue="nature")
    with pytest.raises(ValueError, match="columns=3"):
        quickstart.draw(dataset, columns=3)
    with pytest.raises(FileNotFoundError, match="no dataset at"):
        datasets.read(tmp_path / "none.nc")
    (tmp_path / "broken.nc").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="not a whole netCDF file"):
        datasets.read(tmp_path / "broken.nc")


def test_figures_never_import_torch() -> None:
    code = "import sys, figures.quickstart; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"

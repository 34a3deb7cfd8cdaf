"""What a sweep lacks: cells that failed, layers that not every network has, what has no closed form; and why."""

import numpy as np
import pytest
import torch
import xarray as xr
from pictures import words

import fgvar
from fgvar import plot
from fgvar.cli import main
from fgvar.measurement import FLAGS, report
from fgvar.measurement.stored import UNMEASURED, flags
from fgvar.pages import of_dataset

GAP = {"width": 4, "depth": 2}  # of the cell that fails


def cell(width: int, depth: int, seed: int) -> xr.Dataset:
    """As many layers as its depth; one cell fails."""
    if {"width": width, "depth": depth} == GAP:
        raise RuntimeError("out of luck")
    net = fgvar.networks.MLP(3, width=width, depth=depth, classes=2, seed=seed)
    problem = fgvar.Problem(net, "cross_entropy", (torch.eye(3), torch.tensor([0, 1, 0])))
    return fgvar.measure({"FG-W": fgvar.scheme("FG-W"), "BP": fgvar.scheme("BP")}, problem, draws=32, seed=seed)


@pytest.fixture(scope="module")
def ragged(tmp_path_factory) -> xr.Dataset:
    folder = tmp_path_factory.mktemp("ragged")
    return fgvar.sweep(cell, {"width": (2, 4), "depth": (1, 2)}, seed=(0, 1), folder=folder, workers=0)


def test_flags_of_a_sweep_say_what_was_not_measured(ragged: xr.Dataset) -> None:
    assert ragged["flag"].dtype.kind == "f", "NaN where there is none"
    found = flags(ragged).sel(estimator="BP", reference="target", seed=0)
    shallow = found.sel(width=2, depth=1)
    assert shallow.sel(layer="perturbed") == FLAGS["no_noise"]
    assert shallow.sel(layer="layer1.weight") == UNMEASURED["not_in_this_network"]
    assert set(found.sel(GAP).values.tolist()) == {UNMEASURED["cell_failed"]}


@pytest.mark.parametrize(
    ("at", "layer", "y", "why"),
    [
        ({"depth": 2}, "perturbed", "relative_variance", "cell failed"),
        ({"depth": 2}, "perturbed", "cosine", "cell failed"),
        ({"depth": 2}, "perturbed", "loss", "cell failed"),
        ({"depth": 1}, "layer1.weight", "relative_variance", "not in this network"),
        ({"depth": 1}, "layer1.weight", "size", "not in this network"),
        ({"depth": 1, "seed": 0}, "layer1.weight", "cosine", "not in this network"),
    ],
)
def test_a_sweep_says_why_numbers_are_missing(ragged: xr.Dataset, at, layer: str, y: str, why: str) -> None:
    one = ragged.sel(at)
    assert f": {why}" in words(plot.sweep(one, x="width", y=y, layer=layer))
    told = plot.caption(one, "sweep", x="width", y=y, layer=layer)
    assert f"({why})" in told
    assert told.count("Missing numbers") == 1
    assert "undefined" not in told


@pytest.mark.parametrize("kind", ["layers", "ranking", "tradeoff"])
def test_one_cell_of_a_sweep_is_drawn_and_told(ragged: xr.Dataset, kind: str) -> None:
    failed, shallow = ragged.sel(GAP), ragged.sel(width=2, depth=1)
    for one in (failed, failed.isel(seed=0)):
        assert "cell failed" in words(getattr(plot, kind)(one))
        assert "(cell failed)" in plot.caption(one, kind)
        assert plot.alternative(one, kind)
    assert ("not in this network" in plot.caption(shallow, kind)) == (kind == "layers")


def test_a_failed_cell_is_not_said_to_be_unbiased(ragged: xr.Dataset) -> None:
    told = plot.caption(ragged.sel(GAP).isel(seed=0), "ranking")
    assert "There is no bias" not in told
    assert "Unknown: FG-W, BP." in told


def test_numbers_without_a_closed_form_say_so_over_an_axis() -> None:
    """Flags are along the reference, which relative variances are not."""
    value = xr.DataArray([[1.0, 2.0], [np.nan] * 2], dims=("estimator", "width"))
    flag = xr.DataArray(np.zeros((2, 2, 2), "int8"), dims=("estimator", "reference", "width"))
    flag[1, 0], flag[1, 1] = FLAGS["no_closed_form"], FLAGS["dead"]
    dims = {"estimator": ["FG-W", "MeZO"], "width": [2, 4], "reference": ["target", "backprop"]}
    dataset = xr.Dataset({"relative_variance": value, "flag": flag}, dims, {"route": "exact"})
    assert "MeZO: no closed form" in words(plot.sweep(dataset))
    assert "2 (no closed form)" in plot.caption(dataset, "sweep")


def test_a_number_is_missing_for_what_takes_it_alone() -> None:
    """A cost is not counted, though draws are few; flags of another reference say nothing of a variance."""
    problem = fgvar.testing.default_problems()["linear"]
    drawn = fgvar.measure({"FG-W": fgvar.scheme("FG-W"), "BP": fgvar.scheme("BP")}, problem, draws=2)
    broken = drawn.copy(deep=True)
    broken["cost"][:] = np.nan
    broken["relative_variance"][:] = np.nan
    broken["flag"].loc[{"reference": "target"}] |= FLAGS["dead"]
    assert "FG-W: NaN" not in words(plot.ranking(broken, by="relative_variance"))
    assert "(NaN: the dataset does not say why)" in plot.caption(broken, "ranking", by="cost")
    assert "2 (undefined: " in plot.caption(broken, "ranking", by="relative_variance")
    assert "1 (no noise: nothing to test)" in plot.caption(broken, "ranking", by="bias_p")


def test_flags_of_seeds_are_joined_bit_by_bit() -> None:
    bits = [FLAGS["no_noise"], FLAGS["few_draws"]]
    seeds = xr.Dataset({"v": ("seed", [np.nan] * 2), "flag": ("seed", bits)}, {"seed": [0, 1]})
    assert plot.datasets.across_seeds(seeds)["flag"] == sum(bits)


def test_a_summary_says_why_a_cell_has_dashes_alone(ragged: xr.Dataset) -> None:
    told = fgvar.summary(ragged.sel(GAP).isel(seed=0)).splitlines()
    assert told[-1] == "–: FG-W, BP: cell failed; RuntimeError: out of luck"
    shallow = fgvar.summary(ragged.sel(width=2, depth=1, seed=0), layer="layer1.weight")
    assert shallow.splitlines()[-1] == "–: FG-W, BP: not in this network"
    notes = [line for line in fgvar.summary(ragged.sel(width=2, depth=1, seed=0)).splitlines() if "–:" in line]
    assert notes == ["–: p of FG-W: too few draws"]
    (table,) = report.tables(ragged, ["layer1.weight"])
    assert "–: FG-W, BP: not in this network (width 2, depth 1, seed 0" in table.notes[0]
    assert any("out of luck (width 4, depth 2, seed 0; width 4, depth 2, seed 1)" in note for note in table.notes)


def test_a_page_says_which_cells_failed(ragged: xr.Dataset, monkeypatch) -> None:
    monkeypatch.setattr("fgvar.pages.dataset_page.pictures", lambda _: ((), ()))
    text = of_dataset(ragged)
    assert "<td>cell failed</td><td>all 8 layers</td>" in text
    assert "<td>not in this network</td><td>layer1.weight, layer1.bias</td>" in text
    assert "<td>few draws</td>" in text, "whose bit is not lost beside that of no noise"


def test_a_ragged_sweep_is_plotted_from_its_file(ragged: xr.Dataset, tmp_path, capsys) -> None:
    path = tmp_path / "ragged.nc"
    fgvar.save(ragged, path)
    at = ["--at", "width=4", "depth=2", "seed=0"]
    assert main(["plot", str(path), *at, "--kind", "ranking", "--out", str(tmp_path / "one.svg")]) == 0
    assert "(cell failed)" in (tmp_path / "one.txt").read_text()
    assert main(["plot", str(path), "--at", "depth=2", "--y", "cosine", "--out", str(tmp_path / "two.svg")]) == 0
    assert "(cell failed)" in (tmp_path / "two.txt").read_text()
    fgvar.save(ragged.isel(width=[0], depth=0), path)
    assert main(["plot", str(path), "--x", "width", "--out", str(tmp_path / "three.svg")]) == 0
    assert (tmp_path / "three.txt").read_text().startswith("Relative variance over width of BP, FG-W.")
    assert main(["plot", str(path), "--x", "width", "--y", "cosin", "--out", str(tmp_path / "three.svg")]) == 2
    fgvar.save(ragged, path)
    assert main(["open", str(path)]) == 0
    assert "cell failed; RuntimeError: out of luck" in capsys.readouterr().out


def test_a_caption_is_of_the_choices_that_it_is_given(ragged: xr.Dataset) -> None:
    """One width is no axis of itself, and is one where it is asked for; what is asked for twice is refused."""
    one = ragged.sel(width=[2])
    assert "sweep" not in plot.kinds(one.isel(depth=0))
    how = {"x": "width", "hue": "depth"}
    single = one.sel(estimator="FG-W")
    assert len(plot.sweep(single, **how).axes) == 1
    assert plot.caption(single, "sweep", **how).startswith("Relative variance over width of depth 1, depth 2.")
    assert plot.alternative(single, "sweep", **how).startswith("Relative variance over width: depth 1 from")
    assert "over depth of width 2, width 4." in plot.caption(ragged.sel(estimator="BP"), "sweep", x="depth")
    assert plot.caption(ragged.isel(width=0, depth=0), "ranking", order=["BP", "FG-W"], legend=False)
    with pytest.raises(ValueError, match="no draw_cosine_target, as draws were not kept"):
        plot.caption(single, "draws")
    for call in (plot.sweep, lambda *args, **how: plot.caption(*args, "sweep", **how)):
        with pytest.raises(ValueError, match="hue='seed': seeds are averaged; give another dim"):
            call(single, x="width", hue="seed")
        with pytest.raises(ValueError, match="'width', 'width' and None: 'width' stands twice; give each its own"):
            call(single.sel(depth=1), x="width", hue="width", col=None)


def test_an_error_that_was_cut_off_at_0_is_not_exact() -> None:
    """Where flags tell; without them 0 is all that is known."""
    problem = fgvar.testing.default_problems()["linear"]
    drawn = fgvar.measure({"FG-W": fgvar.scheme("FG-W"), "BP": fgvar.scheme("BP")}, problem, draws=32)
    drawn["snr_se"][:] = 0
    one = {name: drawn.sel(estimator=name, layer="perturbed", reference="target") for name in ("FG-W", "BP")}
    assert plot.series.made(one["FG-W"], "snr") == "drawn"
    assert plot.series.made(one["FG-W"].drop_vars("flag"), "snr") == "exact"
    assert plot.series.made(one["BP"], "relative_variance") == "exact"


@pytest.mark.parametrize(("draws", "route"), [(32, "drawn"), (64, "exact")])
def test_a_page_calls_exact_what_is(draws: int, route: str, monkeypatch) -> None:
    """Below 64 draws a bias has no p-value, and is not exact for that."""
    monkeypatch.setattr("fgvar.pages.dataset_page.pictures", lambda _: ((), ()))
    problem = fgvar.testing.default_problems()["linear"]
    text = of_dataset(fgvar.measure({"FG-W": fgvar.scheme("FG-W")}, problem, draws=draws, route=route))
    assert "Without noise" not in text
    assert "exactly." not in text.replace("‖E ĝ − target‖ / ‖target‖, exactly.", "")


def test_draws_of_a_failed_cell_say_so() -> None:
    problem = fgvar.testing.default_problems()["linear"]
    drawn = fgvar.measure({"FG-W": fgvar.scheme("FG-W")}, problem, draws=32, keep_draws=True)
    failed = drawn.where(False).assign(status="timed out")
    assert "cell timed out" in words(plot.draws(failed))
    told = plot.caption(failed, "draws")
    assert "Without draws: FG-W (cell timed out)." in told
    assert "nan" not in told
    assert plot.alternative(failed, "draws").endswith(": no number.")


def test_what_is_not_drawn_is_not_told_of() -> None:
    problem = fgvar.testing.default_problems()["linear"]
    drawn = fgvar.measure({"FG-W": fgvar.scheme("FG-W"), "BP": fgvar.scheme("BP")}, problem, draws=64)
    drawn["relative_variance"][:] = np.nan
    told = plot.caption(drawn, "tradeoff")
    assert "Hollow" not in told
    assert "On an edge" not in told


def test_a_ranking_and_its_caption_choose_one_quantity() -> None:
    """Cosines of noisy estimates have no closed form."""
    problem = fgvar.testing.default_problems()["linear"]
    exact = fgvar.measure({name: fgvar.scheme(name) for name in ("FG-W", "FG-A")}, problem, route="exact")
    assert plot.ranking(exact).axes[0].get_xlabel() == "relative variance"
    assert plot.caption(exact, "ranking").startswith("Estimators ranked by relative variance")


def test_a_line_break_in_a_name_breaks_no_paragraph() -> None:
    problem = fgvar.testing.default_problems()["linear"]
    told = fgvar.measure({"a\nb": fgvar.scheme("FG-W")}, problem, draws=32)
    assert r"a\nb" in plot.alternative(told, "ranking")
    assert r"last: a\nb" in plot.caption(told, "ranking").splitlines()[-1]

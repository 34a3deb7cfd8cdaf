"""Paired comparison: differences under common noise are exact, and so are their errors."""

import numpy as np
import pytest
import torch
import xarray as xr
from cases import labels, mixer, randn
from torch import nn

import fgvar
from fgvar.measurement.arguments import Settings
from fgvar.measurement.dataset import ENDS, FLAGS, VARIABLES
from fgvar.measurement.intervals import Estimated
from fgvar.measurement.moments import BLOCK, FEATURES, init, update
from fgvar.measurement.mutation_guard import MutationGuard
from fgvar.measurement.paired import DIFFERENCES, Measured, differences
from fgvar.measurement.references import References
from fgvar.measurement.sampled import Drawn, drawn_statistics
from fgvar.measurement.stacks import Dense
from fgvar.measurement.statistics import statistics

ESTIMATORS = {
    "FG-A": fgvar.scheme("FG-A"),
    "antithetic": fgvar.scheme("FG-A", antithetic=True),
    "LG-FG-A": fgvar.scheme("LG-FG-A"),
    "LG-FG-W": fgvar.scheme("LG-FG-W"),
    "LG-BP": fgvar.scheme("LG-BP"),
}


@pytest.fixture(scope="module")
def problem() -> fgvar.Problem:
    return mixer(batch=3)


@pytest.fixture(scope="module")
def dataset(problem: fgvar.Problem) -> xr.Dataset:
    return fgvar.measure(ESTIMATORS, problem, draws=72, seed=3, paired=True)


def test_a_difference_is_that_of_the_two_statistics(dataset: xr.Dataset) -> None:
    assert dataset["baseline"].item() == "FG-A"
    for name in DIFFERENCES:
        expected = dataset[name] - dataset[name].sel(estimator="FG-A")
        xr.testing.assert_allclose(
            dataset[f"{name}_difference"].drop_vars("baseline"),
            expected.drop_vars("baseline"),
            rtol=1e-10,
            atol=1e-12,
        )
        for end in ENDS:
            assert dataset[f"{name}_difference{end}"].dims == dataset[name].dims
        assert f"{name}_difference" in VARIABLES


def test_all_else_is_as_without(dataset: xr.Dataset, problem: fgvar.Problem) -> None:
    alone = fgvar.measure(ESTIMATORS, problem, draws=72, seed=3).drop_vars("seconds")
    xr.testing.assert_identical(dataset.drop_vars("baseline")[list(alone)], alone)
    assert not any("difference" in str(name) for name in alone)


def test_no_difference_is_known_without_error(dataset: xr.Dataset) -> None:
    """An estimator against itself, and against the same one computed otherwise: 0 ± 0."""
    for estimator in ("FG-A", "antithetic"):
        its = dataset.sel(estimator=estimator, layer="perturbed")
        for name in DIFFERENCES:
            np.testing.assert_allclose(its[f"{name}_difference"], 0, atol=1e-10)
            assert (its[f"{name}_difference_se"] == 0).all(), name
            for end in ("_low", "_high"):
                np.testing.assert_array_equal(its[f"{name}_difference{end}"], its[f"{name}_difference"])


def test_one_sign_of_a_single_number_is_no_exact_difference() -> None:
    """Of cosines that are 1 in all draws, while the draws themselves differ."""
    problem = fgvar.Problem(nn.Linear(1, 1, bias=False).double(), "mse", (randn(3, 1), randn(3, 1)))
    ds = fgvar.measure(
        {"one": fgvar.scheme("FG-W"), "two": fgvar.scheme("FG-W", directions=2)}, problem, draws=48, paired=True
    ).sel(layer="weight", reference="target")
    np.testing.assert_allclose(ds["cosine_difference"], 0, atol=1e-12)
    np.testing.assert_array_equal(ds["cosine_difference_se"], [0, np.nan])
    assert (ds["slope_difference_se"].values > 0).tolist() == [False, True]


def test_against_an_exact_gradient_the_interval_is_ones_own(dataset: xr.Dataset) -> None:
    its = dataset.sel(estimator="LG-BP", layer="perturbed")
    for name in ("variance", "slope", "cosine"):
        own = dataset.sel(estimator="FG-A", layer="perturbed")
        np.testing.assert_allclose(its[f"{name}_difference_se"], own[f"{name}_se"], rtol=1e-6)
        # The difference falls where the baseline's value rises.
        for end, other in (("_low", "_high"), ("_high", "_low")):
            expected = its[f"{name}_difference"] - (own[f"{name}{other}"] - own[name])
            np.testing.assert_allclose(its[f"{name}_difference{end}"], expected, rtol=1e-6, err_msg=name)


def test_flags_say_what_is_missing(dataset: xr.Dataset, problem: fgvar.Problem) -> None:
    flag = dataset["difference_flag"]
    dead = dataset.sel(layer="block1.token.bias")
    assert (dead["difference_flag"] & FLAGS["dead"] > 0).all()
    assert np.isnan(dead["slope_difference"]).all()
    heads = [name for name in problem.params if name not in problem.perturbed]
    assert (flag.sel(layer=heads) & FLAGS["no_noise"] > 0).all()
    assert (dataset["variance_difference_se"].sel(layer=heads) == 0).all()
    few = fgvar.measure(ESTIMATORS, problem, draws=31, paired=True).sel(layer="perturbed", estimator="LG-FG-A")
    for name in DIFFERENCES:
        assert np.isfinite(few[f"{name}_difference"]).all()
        assert np.isnan(few[f"{name}_difference_low"]).all()
        assert (few[f"{name}_difference_se"] > 0).all(), "an error makes no promise"
    assert (few["difference_flag"] & FLAGS["few_draws"] > 0).all()
    assert "few_draws" in flag.attrs["flag_meanings"]


@pytest.mark.parametrize("chunk", [4, 48])
def test_no_number_depends_on_the_chunk(dataset: xr.Dataset, problem: fgvar.Problem, chunk: int) -> None:
    chosen = {name: ESTIMATORS[name] for name in ("FG-A", "LG-FG-A")}
    other = fgvar.measure(chosen, problem, draws=72, seed=3, chunk=chunk, paired=True)
    for name in (f"{name}_difference{end}" for name in DIFFERENCES for end in ("", *ENDS)):
        for layer in ("block0.channel.weight", "block1.grouped.weight", "perturbed"):
            a, b = (ds[name].sel(layer=layer, estimator=list(chosen)) for ds in (dataset, other))
            np.testing.assert_allclose(b, a, rtol=1e-8, atol=1e-12, err_msg=f"{name} {layer}")


def test_errors_of_common_noise_are_much_smaller() -> None:
    """Jvp against central differences on a smooth network: by 1,000. Other credit, from the same noise: by 1.5."""
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        for index, p in enumerate(net.parameters()):
            p.copy_(0.5 * randn(*p.shape, seed=index))
    smooth = fgvar.Problem(fgvar.with_sites(net), "cross_entropy", (randn(3, 4), labels(3, 3)))
    step = fgvar.scheme("FG-W", oracle=fgvar.oracles.CentralDifference(1e-3))
    credit = {"one": fgvar.scheme("LG-FG-W"), "two": fgvar.scheme("LG-FG-W", credit="published")}
    cases = ((smooth, {"one": fgvar.scheme("FG-W"), "two": step}, 1000), (mixer(batch=1), credit, 1.5))
    for problem, estimators, factor in cases:
        its = fgvar.measure(estimators, problem, draws=768, paired=True).sel(layer="perturbed")
        for name in ("variance", "slope"):
            error = its[f"{name}_difference_se"].sel(estimator="two")
            apart = np.sqrt(np.square(its[f"{name}_se"]).sum("estimator"))
            assert (error > 0).all()
            assert (factor * error < apart).all(), (name, factor, error.values, apart.values)


SEEDS, DRAWS, SIZE, DIRECTIONS = 200, 48, 12, 20


def simulate(seed: int, references: References) -> dict[str, Estimated]:
    """Differences for (g·v)v + 0.3 less (g·u)u, means of 20 directions, where v and u are correlated by 0.95."""
    u, fresh = torch.from_numpy(np.random.default_rng(seed).standard_normal((2, DRAWS, DIRECTIONS, SIZE)))
    measured = []
    for v, bias in ((u, 0.0), (0.95 * u + (1 - 0.95**2) ** 0.5 * fresh, 0.3)):
        moments, kept, grams = init(references), [], []
        estimates = ((v @ references.backprop["w"])[..., None] * v).mean(1) + bias
        for rows in estimates.split(BLOCK):
            moments, blocks, features = update(moments, references, Dense({"w": rows}))
            kept.append(features.numpy())
            grams.append(blocks[0].gram[0])
        values = statistics(moments, references)
        length = float(references.target["w"].square().sum())
        values["relative_variance"] = values["variance"].scaled(np.array(1 / length))
        drawn = Drawn(values, np.concatenate(kept, 1), grams)
        measured.append(Measured(values, np.zeros((2, 3), np.int8), np.full(3, SIZE), drawn, 2e-16))
    return differences(measured[1], measured[0])


def test_errors_are_right_over_seeds() -> None:
    """Spread of 200 differences over their mean error: in [0.75, 1.25], five standard errors (5 % each, of a standard
    deviation) to either side of 1; and the intervals hold the differences' mean in 88 to 99.5 % of runs. Right ones
    leave one of these bands in fewer than 1 of 10⁴ choices of seeds.
    """
    g = torch.from_numpy(np.random.default_rng(1).standard_normal(SIZE))
    references = References.of({"w": 1.1 * g}, {"w": g}, ("w",))
    runs = [simulate(seed, references) for seed in range(SEEDS)]
    for name in DIFFERENCES:
        parts = (np.stack([run[name].parts[i][..., 0] for run in runs]).reshape(SEEDS, -1) for i in range(4))
        values, errors, low, high = parts
        assert np.isfinite(errors).all(), name
        ratio = values.std(0) / errors.mean(0)
        assert ((ratio > 0.75) & (ratio < 1.25)).all(), (name, ratio)
        covered = ((low <= values.mean(0)) & (values.mean(0) <= high)).mean(0)
        assert ((covered > 0.88) & (covered < 0.995)).all(), (name, covered)


def test_memory_is_that_of_scalars(problem: fgvar.Problem) -> None:
    """23 numbers a draw and layer beside the per-draw features, however large the layers are."""
    estimator = fgvar.scheme("FG-W")
    references = References.of(problem.backprop(), problem.backprop(), problem.perturbed)
    guard, randomness = MutationGuard.of("a", estimator, problem), estimator.randomness(problem)
    kept, dropped = (
        drawn_statistics(guard, estimator, references, randomness, settings)
        for settings in (Settings(160, 0, chunk=16, paired=keep) for keep in (True, False))
    )
    layers = len(problem.params) + 2
    assert sum(gram.numel() for gram in kept.grams) == layers * 10 * 19**2 < 23 * 160 * layers
    assert kept.features.shape == (layers, 160, len(FEATURES))
    assert dropped.grams == []
    assert dropped.features.size == 0, "memory would grow with the draws"


def test_exact_differences_have_error_0(problem: fgvar.Problem) -> None:
    chosen = {"FG-A": ESTIMATORS["FG-A"], "LG-FG-W": ESTIMATORS["LG-FG-W"], "BP": fgvar.scheme("BP")}
    ds = fgvar.measure(chosen, problem, route="exact", paired=True).sel(layer="perturbed")
    for name in ("variance", "relative_variance", "slope"):
        expected = ds[name] - ds[name].sel(estimator="FG-A")
        np.testing.assert_allclose(ds[f"{name}_difference"], expected, rtol=1e-10)
        assert (ds[f"{name}_difference_se"] == 0).all()
        assert (ds[f"{name}_difference_low"] == ds[f"{name}_difference_high"]).all()
    assert np.isnan(ds["cosine_difference"].sel(estimator="LG-FG-W")).all()
    assert (ds["difference_flag"].sel(estimator="LG-FG-W") & FLAGS["no_closed_form"] > 0).all()


def test_the_summary_has_a_second_table(dataset: xr.Dataset) -> None:
    text = fgvar.summary(dataset)
    assert "less those of 'FG-A', by common noise: drawn, 72 draws" in text
    assert text.count("LG-FG-A") == 2
    assert "less those" not in fgvar.summary(dataset.drop_vars("baseline"))


def test_a_stored_dataset_keeps_its_baseline(dataset: xr.Dataset, tmp_path) -> None:
    xr.testing.assert_identical(fgvar.open_dataset(fgvar.save(dataset, tmp_path / "a.nc")), dataset)


def test_a_single_estimator_cannot_be_compared(problem: fgvar.Problem) -> None:
    with pytest.raises(ValueError, match=r"compares estimators with the first one, and \['FG-A'\] is alone; give at"):
        fgvar.measure({"FG-A": fgvar.scheme("FG-A")}, problem, paired=True)

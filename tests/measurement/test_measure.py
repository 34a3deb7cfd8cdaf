"""measure: the dataset contract, independence of chunks, and agreement with closed forms."""

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
import xarray as xr
from cases import CASES, mixer, randn
from torch import Tensor, nn

import fgvar
from fgvar.measurement.budget import default_chunk
from fgvar.measurement.dataset import ENDS, FLAGS, VARIABLES
from fgvar.measurement.references import References
from fgvar.measurement.statistics import cosine_null
from studies.fused_losses import peak

SCHEMES = ("FG-W", "FG-A", "LG-FG-W", "LG-FG-A")


@pytest.fixture(scope="module")
def problem() -> fgvar.Problem:
    return mixer(batch=3)


@pytest.fixture(scope="module")
def dataset(problem: fgvar.Problem) -> xr.Dataset:
    estimators = {name: fgvar.scheme(name) for name in (*SCHEMES, "LG-BP")}
    return fgvar.measure(estimators, problem, draws=96, seed=3, keep_draws=True)


def test_contract(dataset: xr.Dataset, problem: fgvar.Problem) -> None:
    assert list(dataset["layer"].values) == [*problem.params, "perturbed", "total"]
    assert list(dataset["reference"].values) == ["target", "backprop"]
    assert list(dataset["estimator"].values) == [*SCHEMES, "LG-BP"]
    drawn = {"variance", "relative_variance", "snr", "sq_bias", "slope", "cosine", "efficiency"}
    assert drawn | {f"{name}{end}" for name in drawn for end in ENDS} - {"sq_bias_low"} <= set(dataset)
    assert not {"sq_bias_low", *(f"bias_{one}{end}" for one in "zp" for end in ENDS)} & set(dataset)
    assert dataset["variance"].dims == ("estimator", "layer")
    assert dataset["cosine"].dims == ("estimator", "reference", "layer")
    assert dataset["draw_cosine_target"].dims == ("estimator", "layer", "draw")
    for name, variable in dataset.data_vars.items():
        assert variable.attrs["long_name"], name
        assert "units" in variable.attrs, name
        base = next((str(name).removesuffix(end) for end in ENDS if str(name).endswith(end)), str(name))
        assert base in VARIABLES
    assert dataset["slope_low"].attrs["long_name"].startswith("lower end of the 95 % interval of the slope")
    assert dataset["sq_bias_high"].attrs["long_name"].startswith("upper limit (97.5 %) of the squared bias")
    wanted = {"route", "draws", "seed", "estimators", "fgvar_version", "torch_version", "commit", "device", "dtype"}
    assert wanted | {"threads"} <= set(dataset.attrs)
    assert dataset.attrs["route"] == "drawn"


def test_loss_and_accuracy_are_those_of_the_batch(dataset: xr.Dataset, problem: fgvar.Problem) -> None:
    outputs = problem.run(problem.params)[0]
    assert dataset["loss"].item() == pytest.approx(float(problem.loss()))
    assert dataset["accuracy"].item() == pytest.approx(float((outputs.argmax(1) == problem.targets).double().mean()))
    assert "accuracy" not in fgvar.measure({"BP": fgvar.scheme("BP")}, CASES["linear"](), draws=2)


def test_round_trip(dataset: xr.Dataset, tmp_path) -> None:
    path = fgvar.save(dataset, tmp_path / "deep" / "a.nc")
    xr.testing.assert_identical(fgvar.open_dataset(path), dataset)
    assert [p.name for p in path.parent.iterdir()] == ["a.nc"]


def test_groups_are_sums_over_parameters(dataset: xr.Dataset, problem: fgvar.Problem) -> None:
    for name in ("variance", "sq_bias", "data_variance"):
        parts = dataset[name].sel(layer=list(problem.perturbed)).sum("layer")
        np.testing.assert_allclose(parts, dataset[name].sel(layer="perturbed"), rtol=1e-9)
        parts = dataset[name].sel(layer=list(problem.params)).sum("layer")
        np.testing.assert_allclose(parts, dataset[name].sel(layer="total"), rtol=1e-9)


def test_heads_learn_exactly(dataset: xr.Dataset, problem: fgvar.Problem) -> None:
    heads = [name for name in problem.params if name not in problem.perturbed]
    assert heads
    chosen = dataset.sel(layer=heads, reference="target")
    assert float(chosen["variance"].max()) < 1e-28
    np.testing.assert_allclose(chosen["cosine"], 1, atol=1e-12)


def measured_by(problem: fgvar.Problem, chunk: int) -> xr.Dataset:
    return fgvar.measure({name: fgvar.scheme(name) for name in ("FG-W", "LG-FG-A")}, problem, draws=40, chunk=chunk)


@pytest.fixture(scope="module")
def by_32(problem: fgvar.Problem) -> xr.Dataset:
    return measured_by(problem, 32)


@pytest.mark.parametrize("chunk", [1, 2, 4, 8, 16, 48])
def test_no_number_depends_on_the_chunk(by_32: xr.Dataset, problem: fgvar.Problem, chunk: int) -> None:
    one, other = by_32, measured_by(problem, chunk)
    for name in one:
        if name in ("seconds", "flag"):
            continue
        # Heads have no noise: their variance is rounding alone, and so is all that is divided by it.
        for layer in (*problem.perturbed, "perturbed"):
            a, b = one[name], other[name]
            a, b = (v.sel(layer=layer) if "layer" in v.dims else v for v in (a, b))
            live = one["gradient_norm"].sel(layer=layer).min() > 1e-6
            if live:
                np.testing.assert_allclose(b, a, rtol=1e-8, atol=1e-12, err_msg=f"{name} {layer}")


def wide_mixer() -> fgvar.Problem:
    net = fgvar.networks.LocalMixer((1, 8, 8), 10, blocks=1, patches=4, channels=96, groups=4)
    return fgvar.Problem(net, "cross_entropy", fgvar.data.load("digits").sample(16, seed=0))


def wide_mlp() -> fgvar.Problem:
    """Many examples of few activations: what their gradients take is most."""
    net = fgvar.networks.MLP((1, 8, 8), width=128, depth=3, classes=10)
    return fgvar.Problem(net, "cross_entropy", fgvar.data.load("digits").sample(128, seed=0))


@pytest.mark.parametrize("oracle", [fgvar.Jvp(), fgvar.oracles.Replay()], ids=repr)
@pytest.mark.parametrize("name", ["FG-W", "FG-A"])
@pytest.mark.parametrize("build", [wide_mixer, wide_mlp])
def test_memory_keeps_to_the_budget(build: Callable[[], fgvar.Problem], name: str, oracle: object) -> None:
    """What torch allocates at a time, however many draws; local losses where there are heads."""
    problem, budget = build(), 16 << 20
    estimator = fgvar.scheme(f"LG-{name}" if build is wide_mixer else name, oracle=oracle)
    assert default_chunk(estimator, problem, estimator.randomness(problem), budget) > 1
    taken = peak(lambda: fgvar.measure({"one": estimator}, problem, draws=32, budget=budget))
    assert taken < budget


def test_more_draws_extend_fewer(problem: fgvar.Problem) -> None:
    few, many = (
        fgvar.measure({"FG-A": fgvar.scheme("FG-A")}, problem, draws=n, keep_draws=True, chunk=16) for n in (40, 72)
    )
    np.testing.assert_allclose(many["draw_square"][..., :40], few["draw_square"], rtol=1e-12, atol=1e-20)


def test_per_draw_scalars_are_what_they_are_said_to_be(dataset: xr.Dataset) -> None:
    """Squared errors have the mean tr Cov + squared bias, as their description says, exactly so in any sample."""
    one = dataset.sel(reference="target").where(dataset["cosine"].sel(reference="target").notnull())  # none is dead
    assert one["draw_square"].attrs["long_name"] == "squared error ‖ĝ − target‖² of one draw"
    np.testing.assert_allclose(
        one["draw_square"].mean("draw"), one["variance"] + one["sq_bias"], rtol=1e-9, atol=1e-15
    )
    np.testing.assert_allclose(one["draw_cosine_target"].mean("draw"), one["cosine"], rtol=1e-9)
    slope = 1 + one["draw_along_target"].mean("draw") / one["gradient_norm"] ** 2
    np.testing.assert_allclose(slope, one["slope"], rtol=1e-9)


def test_estimators_share_noise_and_global_random_state_is_untouched(problem: fgvar.Problem) -> None:
    torch.manual_seed(5)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    twice = fgvar.measure({"one": fgvar.scheme("FG-A"), "two": fgvar.scheme("FG-A")}, problem, draws=8)
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(numpy_before, np.random.get_state()[1])
    xr.testing.assert_equal(
        twice["variance"].sel(estimator="one", drop=True), twice["variance"].sel(estimator="two", drop=True)
    )


def test_equal_losses_have_one_target_and_the_numbers_of_each_alone(
    problem: fgvar.Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Estimators of equal losses that follow one another share their references; those of others have their own."""
    made = []
    of = References.of
    monkeypatch.setattr(References, "of", lambda *tensors: made.append(tensors) or of(*tensors))
    schemes = {name: fgvar.scheme(name) for name in ("FG-W", "FG-A", "LG-FG-W", "LG-FG-A", "BP")}
    together = fgvar.measure(schemes, problem, draws=2)
    assert len(made) == 3
    for name, scheme in schemes.items():
        alone = fgvar.measure({name: scheme}, problem, draws=2)
        xr.testing.assert_equal(together.sel(estimator=[name]).drop_vars("seconds"), alone.drop_vars("seconds"))


def test_exact_estimators_have_no_noise(dataset: xr.Dataset, problem: fgvar.Problem) -> None:
    exact = dataset.sel(estimator="LG-BP", layer="perturbed")
    assert exact["variance"] == 0
    assert exact["variance_se"] == exact["variance_low"] == exact["variance_high"] == 0
    np.testing.assert_array_equal(exact["cosine_low"], exact["cosine"])
    np.testing.assert_array_equal(exact["sq_bias_high"], exact["sq_bias"])
    assert exact["cosine"].sel(reference="target") == pytest.approx(1)
    assert int(exact["flag"].sel(reference="target")) & FLAGS["no_noise"]
    assert np.isnan(exact["bias_z"]).all()
    target, backprop = fgvar.scheme("LG-BP").target(problem), problem.backprop()
    flat = [torch.cat([g[name].flatten() for name in problem.perturbed]) for g in (target, backprop)]
    assert exact["sq_bias"].sel(reference="backprop").item() == pytest.approx(
        float((flat[0] - flat[1]).square().sum())
    )
    cosine = float(torch.nn.functional.cosine_similarity(*flat, dim=0))
    assert exact["cosine"].sel(reference="backprop").item() == pytest.approx(cosine)


def test_a_dead_parameter_is_nan_with_a_flag(dataset: xr.Dataset) -> None:
    """The layer norm after a token layer cancels its bias: its gradient is 0 within rounding."""
    dead = dataset.sel(estimator="FG-W", layer="block1.token.bias")
    assert (dead["flag"] & FLAGS["dead"] > 0).all()
    for name in ("relative_variance", "snr"):
        assert np.isnan(dead[name])
    for name in ("slope", "cosine", "efficiency"):
        assert np.isnan(dead[name]).all()
    assert dead["variance"] > 0, "weight perturbation puts noise on it, and the total says so"
    assert not np.isnan(dataset["relative_variance"].sel(layer="total")).any()
    assert not any(np.isinf(variable.astype(float)).any() for variable in dataset.data_vars.values())


def test_too_few_draws_for_an_interval() -> None:
    """31 have none, and 32 always have one, but for layers of one number."""
    few, more = (
        fgvar.measure({"FG-W": fgvar.scheme("FG-W")}, CASES["mlp_relu"](), draws=draws) for draws in (31, 32)
    )
    learnt = few.sel(layer="readout.linear.weight")
    for name in ("variance", "relative_variance", "sq_bias", "snr", "slope", "cosine", "efficiency"):
        its = few.sel(layer="perturbed")
        assert np.isnan(its[f"{name}_high"]).all(), name
        assert (its[f"{name}_se"] > 0).all(), "an error makes no promise"
        if name != "snr":
            assert (learnt[f"{name}_high"] == learnt[name]).all(), "what learns exactly is known"
        given = np.isfinite(more[name]) & (more["size"] > 1)
        assert np.isfinite(more[f"{name}_high"]).where(given, True).all(), name
        if name not in ("sq_bias", "snr", "efficiency"):  # these may be estimated below 0
            inside = (more[f"{name}_low"] <= more[name]) & (more[name] <= more[f"{name}_high"])
            assert inside.where(given, True).all(), name
    assert (few["flag"].sel(layer="perturbed") & FLAGS["few_draws"] > 0).all()
    assert ((more["flag"] & FLAGS["few_draws"] > 0) == (more["bias_z"].notnull() & more["bias_p"].isnull())).all()


def test_data_variance_is_that_of_per_example_gradients(dataset: xr.Dataset, problem: fgvar.Problem) -> None:
    each = [problem.example(n).backprop() for n in range(3)]
    for name in ("block0.channel.weight", "block1.grouped.bias"):
        stacked = torch.stack([g[name] for g in each]).flatten(1)
        expected = float(stacked.var(0, unbiased=True).sum()) / 3
        assert dataset["data_variance"].sel(
            estimator="FG-W", reference="backprop", layer=name
        ).item() == pytest.approx(expected)
    assert np.isnan(fgvar.measure({"BP": fgvar.scheme("BP")}, mixer(batch=1), draws=2)["data_variance"]).all()


@pytest.mark.parametrize(("noise", "excess"), [(fgvar.Gaussian(), 1), (fgvar.Rademacher(), -1)])
def test_variance_of_weight_perturbation_is_the_closed_form(noise, excess: int) -> None:
    """tr Cov = (d ± 1)‖∇‖². A 5-sigma test: one false alarm in 1.7 million; catches an error of 15 %."""
    problem = CASES["mlp_relu"]()
    d = sum(problem.params[name].numel() for name in problem.perturbed)
    ds = fgvar.measure({"FG-W": fgvar.scheme("FG-W", noise=noise)}, problem, draws=4096)
    chosen = ds.sel(estimator="FG-W", layer="perturbed")
    error = chosen["relative_variance_se"].item()
    assert abs(chosen["relative_variance"].item() - (d + excess)) < 5 * error
    assert 5 * error < 0.15 * d


def test_activity_variance_is_the_closed_form() -> None:
    """(q + 1)/N · mean|G_n|² for one linear layer and Gaussian noise. False alarms 6e-7; catches 15 %."""
    net = nn.Linear(6, 5).double()
    problem = fgvar.Problem(fgvar.with_sites(net), "mse", (randn(4, 6), randn(4, 5, seed=1)))
    each = problem.per_example(lambda one: one.backprop())["weight"].flatten(1)
    expected = (5 + 1) / 4 * float(each.square().sum(1).mean())
    ds = fgvar.measure({"FG-A": fgvar.scheme("FG-A")}, problem, draws=4096).sel(estimator="FG-A", layer="weight")
    assert abs(ds["variance"].item() - expected) < 5 * ds["variance_se"].item()
    assert 5 * ds["variance_se"].item() < 0.15 * expected


def test_bias_is_seen_where_it_is_and_only_there() -> None:
    """One parameter of two is estimated 1.5 times too large. The other gives an alarm 1 in a million times."""

    class Planted(fgvar.Estimator):
        def estimate(self, problem, noise):
            gradient = super().estimate(problem, noise).gradient
            return fgvar.Estimate({name: g * (1.5 if name == "weight" else 1) for name, g in gradient.items()})

    ds = fgvar.measure({"planted": Planted()}, CASES["linear"](), draws=4096).sel(estimator="planted")
    chosen = ds.sel(reference="target")
    assert chosen["bias_p"].sel(layer="weight") < 1e-6
    assert chosen["bias_p"].sel(layer="total") < 1e-6
    assert chosen["bias_p"].sel(layer="bias") > 1e-6
    weight = chosen.sel(layer="weight")
    assert abs(weight["slope"] - 1.5) < 5 * weight["slope_se"]
    assert abs(weight["sq_bias"] - 0.25 * weight["gradient_norm"] ** 2) < 5 * weight["sq_bias_se"]


def test_anybodys_estimator_can_be_measured(problem: fgvar.Problem) -> None:
    """The protocol is three methods; an estimator that cannot run under vmap is measured with chunk=1."""

    class Shrunk:
        def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:  # noqa: ARG002
            return fgvar.Randomness({"u": fgvar.Leaf((1,), fgvar.Rademacher())})

        def estimate(self, problem: fgvar.Problem, noise: dict[str, Tensor]) -> fgvar.Estimate:
            factor = 0.5 * (1 + float(noise["u"]))  # .item() breaks under vmap
            return fgvar.Estimate({k: factor * g for k, g in problem.backprop().items()})

        def target(self, problem: fgvar.Problem) -> dict[str, Tensor]:
            return problem.backprop()

    ds = fgvar.measure({"mine": Shrunk()}, problem, draws=64, chunk=1).sel(layer="perturbed", reference="target")
    slope, error = ds["slope"].item(), ds["slope_se"].item()
    assert abs(slope - 0.5) < 5 * error
    assert ds["efficiency"].item() == pytest.approx(0.5, abs=0.3)


def test_summary_reads(dataset: xr.Dataset) -> None:
    table = fgvar.summary(dataset)
    heads = ("bias z (p)", "bias, of the target", "relative variance", "cosine to target", "cosine to backprop")
    for name in (*SCHEMES, "LG-BP", *heads, "96 draws, 95 % intervals", "at most "):
        assert name in table
    its = dataset.sel(estimator="FG-A", layer="perturbed")
    low, high = (f"{its[f'relative_variance_{end}'].item():.0f}" for end in ("low", "high"))
    assert f"{its['relative_variance'].item():.0f} [{low}, {high}]" in table
    bias = (its["sq_bias_high"] ** 0.5 / its["gradient_norm"]).sel(reference="target").item()
    assert f"at most {bias:.2g}" in table
    steps = fgvar.summary(dataset.expand_dims(step=[1, 10]), layer="total")
    assert "step 10" in steps


def test_summary_of_errors_alone(dataset: xr.Dataset) -> None:
    """As datasets of earlier versions are: ± 1.96 of them, and the heading says so."""
    ends = [name for name in dataset if str(name).endswith(("_low", "_high"))]
    table = fgvar.summary(dataset.drop_vars(ends))
    assert "96 draws, ± 1.96 standard errors, as it has no intervals" in table
    assert "at most" not in table
    its = dataset.sel(estimator="FG-A", layer="perturbed", reference="target")
    assert f"{its['relative_variance'].item():.0f} ± {1.96 * its['relative_variance_se'].item():.0f}" in table
    dead = fgvar.summary(dataset, layer="block1.token.bias")
    assert "at most" not in dead, "of a target of 0 a bias is no share"


@pytest.mark.parametrize("route", ["drawn", "exact"])
def test_the_summary_of_a_0_1_loss_says_why_it_has_dashes(route: str) -> None:
    torch.manual_seed(0)
    problem = fgvar.Problem(
        torch.nn.Linear(3, 2), lambda z, y: (z.argmax(1) != y).float(), (torch.randn(8, 3), torch.arange(8) % 2)
    )
    names = ("FG-W", "MeZO") if route == "drawn" else ("FG-W",)
    table = fgvar.summary(fgvar.measure({name: fgvar.scheme(name) for name in names}, problem, draws=4, route=route))
    assert re.search(rf"\n–: the target of {', '.join(names)} is 0, .*0-1 loss.*dataset\[\"variance\"\]", table)


@pytest.mark.parametrize(("dimension", "null"), [(1, 1.0), (2, float(np.cos(np.pi * 0.05 / 2))), (4096, 1.96 / 64)])
def test_cosine_null(dimension: int, null: float) -> None:
    assert cosine_null(dimension) == pytest.approx(null, rel=1e-3)


def test_what_a_norm_makes_dead_is_not_tested_for_bias() -> None:
    """The layer norm behind token mixing takes biases away: what is estimated there is rounding, biased or not."""
    model = fgvar.networks.LocalMixer((1, 8, 8), 10, blocks=2, patches=2, channels=64, groups=8, seed=0)
    problem = fgvar.Problem(model, "cross_entropy", fgvar.data.load("digits").sample(32, seed=0))
    found = fgvar.measure({"LG-FG-A": fgvar.scheme("LG-FG-A")}, problem, draws=64).sel(layer="block1.token.bias")
    assert (found["flag"] & FLAGS["no_noise"]).all()
    assert found["bias_p"].isnull().all()
    assert float(found["variance"].max()) > 0, "or this test shows nothing"


def test_cost_is_counted_in_forward_passes(dataset: xr.Dataset) -> None:
    cost = dataset["cost"]
    assert (cost > 2).all()
    assert (cost < 8).all()
    assert (abs(cost.sel(estimator=["FG-W", "FG-A"]) - 3) < 0.2).all(), "three products of a layer each"


@pytest.mark.parametrize("name", ["FG-W", "BP"])
def test_what_plays_no_part_on_the_exact_route_may_have_any_value(name: str, problem: fgvar.Problem) -> None:
    """Neither draws nor the blocks that chunks fill are looked at, with or without randomness; their types are."""
    schemes = {"one": fgvar.scheme(name), "two": fgvar.scheme(name)}
    expected = fgvar.measure(schemes, problem, route="exact", paired=True).drop_vars("seconds")
    for draws, chunk in ((0, 3), (-5, 17), (1, None)):
        found = fgvar.measure(schemes, problem, route="exact", paired=True, draws=draws, chunk=chunk)
        xr.testing.assert_allclose(found.drop_vars("seconds"), expected, rtol=1e-12)
        assert "draws" not in found.attrs
    for wrong in ({"draws": 1.5}, {"draws": True}, {"chunk": "all"}):
        ((what, value),) = wrong.items()
        with pytest.raises(TypeError, match=f"{what} is {value!r}, expected an integer"):
            fgvar.measure(schemes, problem, route="exact", **wrong)
    with pytest.raises(ValueError, match="draws is 0, expected at least 2"):
        fgvar.measure(schemes, problem, draws=0)


def test_a_probe_by_the_exact_route_needs_no_draws(problem: fgvar.Problem) -> None:
    chosen = {"estimators": {"FG-W": fgvar.scheme("FG-W")}, "batch": (problem.inputs, problem.targets), "steps": [0]}
    fgvar.Probe(**chosen, draws=0, route="exact").check(problem, 1)
    for route in ("drawn", "both"):
        with pytest.raises(ValueError, match="draws is 0, expected at least 2"):
            fgvar.Probe(**chosen, draws=0, route=route).check(problem, 1)

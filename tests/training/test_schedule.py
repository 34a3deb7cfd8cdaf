"""Schedules and their options: rates, optimisers, factors, autocast, compiled steps."""

import functools
import math

import pytest
import torch
from refusals import says

import fgvar
from fgvar.nn.traits import declare
from fgvar.training.gradients import gradient_of
from fgvar.training.schedule import Optimiser


@pytest.fixture(scope="module")
def data():
    train, test = (fgvar.data.load("digits", split) for split in ("train", "test"))
    return train.subset(range(128)), test.subset(range(64))


def mixer(head_init: str = "zero", blocks: int = 2) -> fgvar.networks.LocalMixer:
    return fgvar.networks.LocalMixer(
        (1, 8, 8), 10, blocks=blocks, patches=2, channels=16, groups=4, head_init=head_init, seed=1
    )


def test_rates() -> None:
    linear = fgvar.Schedule(epochs=10, lr=1.0)
    assert [linear.rate(step, 10) for step in (0, 5, 9)] == pytest.approx([1, 0.5, 0.1])
    cosine = fgvar.Schedule(epochs=10, lr=1.0, decay="cosine", warmup=2)
    rates = [cosine.rate(step, 20) for step in range(20)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1])
    assert rates[4] == pytest.approx(1)
    assert rates[12] == pytest.approx(0.5)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    constant = fgvar.Schedule(epochs=10, lr=0.3, decay="constant", warmup=1)
    assert {constant.rate(step, 20) for step in range(2, 20)} == {0.3}


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_factors_and_decay_are_those_of_a_plain_loop(data, optimiser: str) -> None:
    """Local heads and read-out at their own rates; weight decay on weights only: against torch, group by group.

    In float64, where the gradient of a bias that a norm cancels, 1e-18, stays below the 1e-8 that Adam adds to its
    denominator: it moves by 1e-10 of a step at most.
    """
    schedule = fgvar.Schedule(1, 32, 0.01, 0.8, 1e-2, optimiser=optimiser, head_factor=0.5, readout_factor=0.1)
    model = mixer("kaiming").double()
    run = fgvar.train(model, fgvar.scheme("LG-BP"), data, schedule, seed=3)
    problem = fgvar.Problem(model, "cross_entropy", data[0].sample(32, seed=3, dtype=torch.float64))
    params = {name: value.clone().requires_grad_() for name, value in problem.params.items()}
    factor = {name: 0.5 if ".head." in name else 0.1 if name.startswith("readout") else 1 for name in params}
    groups = [
        {"params": [value], "weight_decay": 1e-2 if value.ndim > 1 else 0.0, "lr": 0.0, "name": name}
        for name, value in params.items()
    ]
    torch_one = (
        torch.optim.SGD(groups, momentum=0.8) if optimiser == "sgd" else torch.optim.Adam(groups, betas=(0.8, 0.999))
    )
    for step, batch in enumerate(data[0].batches(32, seed=3, epoch=0, dtype=torch.float64)):
        here = problem.at({name: value.detach() for name, value in params.items()}, batch)
        for name, value in fgvar.scheme("LG-BP").target(here).items():
            params[name].grad = value
        for group in torch_one.param_groups:
            group["lr"] = 0.01 * factor[group["name"]] * (1 - step / 4)
        torch_one.step()
    for name, value in params.items():
        torch.testing.assert_close(run.params[name], value.detach(), rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_every_number_moves_in_every_precision(optimiser: str, dtype: torch.dtype) -> None:
    """Two steps along 1: all of them alike, as far as by torch's optimiser in a plain loop over tensors."""
    net, batch = torch.nn.Linear(16, 5).to(dtype), (torch.ones(2, 16, dtype=dtype), torch.ones(2, 5))
    problem = fgvar.Problem(net, "mse", batch)
    params, plain = ({name: torch.ones_like(p) for name, p in problem.params.items()} for _ in range(2))
    ours = Optimiser(fgvar.Schedule(1, 2, 0.1, 0.9, 0.0, optimiser=optimiser, decay="constant"), problem, params, 2)
    kind = torch.optim.SGD if optimiser == "sgd" else torch.optim.Adam
    words = {"momentum": 0.9} if optimiser == "sgd" else {"betas": (0.9, 0.999)}
    theirs = kind(plain.values(), lr=0.1, foreach=False, fused=False, **words)
    for step in range(2):
        for value in (*params.values(), *plain.values()):
            value.grad = torch.ones_like(value)
        ours.step(step)
        theirs.step()
    for name, value in params.items():
        assert float(value.max()) < 0.85
        torch.testing.assert_close(value, plain[name])


def three_layers(*, last: bool, root: bool = False) -> torch.nn.Module:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    declare(net[3], learns_exactly=last)
    declare(net, learns_exactly=root)
    return net


@pytest.mark.parametrize(
    ("net", "factors"),
    [
        (three_layers(last=True), {"0.weight": 1.0, "3.weight": 0.2}),
        (three_layers(last=False, root=True), {"0.weight": 0.2, "3.weight": 0.2}),
        (
            fgvar.with_local_heads(three_layers(last=False), after=("1",), classes=2, readout="3"),
            {"0.weight": 1.0, "1.local.head.linear.weight": 0.5, "3.weight": 0.2},
        ),
    ],
    ids=["declared", "the network itself", "named"],
)
def test_what_learns_exactly_has_the_read_outs_factor(net: torch.nn.Module, factors: dict[str, float]) -> None:
    problem = fgvar.Problem(net, "cross_entropy", (torch.randn(2, 3), torch.arange(2)))
    schedule = fgvar.Schedule(lr=1.0, momentum=0.0, weight_decay=0.0, head_factor=0.5, readout_factor=0.2)
    params = {name: torch.zeros_like(value) for name, value in problem.params.items()}
    for value in params.values():
        value.grad = torch.ones_like(value)
    Optimiser(schedule, problem, params, total=1).step(0)
    assert {name: -float(params[name][0, 0]) for name in factors} == pytest.approx(factors)


def test_a_frozen_trunk_stays_exactly_as_it_was(data) -> None:
    """Weight decay included; its heads learn."""
    model = mixer()
    run = fgvar.train(model, fgvar.scheme("frozen"), data, fgvar.Schedule(2, 32, weight_decay=0.1))
    for name, value in model.named_parameters():
        learns = name.startswith("readout") or ".head." in name
        assert torch.equal(run.params[name], value) != learns, name
    assert run.dataset["loss"][-1] < run.dataset["loss"][0]


def test_the_logger_sees_every_epoch(data) -> None:
    seen: list = []
    run = fgvar.train(
        mixer(),
        fgvar.scheme("BP"),
        data,
        fgvar.Schedule(2, 32),
        logger=lambda step, values: seen.append((step, values)),
    )
    assert [step for step, _ in seen] == [4, 8]
    assert seen[-1][1]["test_error"] == float(run.dataset["test_error"][-1])


@pytest.mark.parametrize("name", ["BP", "LG-FG-A", "FG-W"])
def test_autocast_keeps_the_parameters_type_and_trains(data, name: str) -> None:
    run = fgvar.train(mixer(), fgvar.scheme(name), data, fgvar.Schedule(3, 32, 0.05), autocast=True)
    plain = fgvar.train(mixer(), fgvar.scheme(name), data, fgvar.Schedule(3, 32, 0.05))
    assert all(value.dtype == torch.float32 for value in run.params.values())
    assert any(not torch.equal(value, plain.params[key]) for key, value in run.params.items()), "it changed nothing"
    assert run.dataset["loss"][-1] < run.dataset["loss"][0]
    assert abs(float(run.dataset["loss"][-1] - plain.dataset["loss"][-1])) < 0.2


@pytest.mark.parametrize(
    ("name", "views"), [("LG-FG-A", False), ("LG-FG-A", True), ("FG-W", True), ("LG-FA", False), ("DFA", False)]
)
def test_a_compiled_estimate_is_the_eager_one(name: str, views: bool) -> None:
    """One whole graph, on two blocks with cut sites, where forward-mode derivatives could get lost in tracing.

    Of two views the keys are made first, without a derivative, by the same layers.

    Traced and differentiated ahead of time, but run by eager kernels: generating code would take half a minute.
    Held against the largest gradient: that of a bias which a layer norm cancels is rounding.
    """
    torch._dynamo.reset()
    x, y = fgvar.data.load("digits").sample(8, seed=0, dtype=torch.float64)
    net, batch, estimator = mixer("kaiming").double(), (x, x.roll(1, -1) if views else y), fgvar.scheme(name)
    pair = fgvar.contrastive.Contrastive, fgvar.contrastive.InfoNCE()
    kind, loss = pair if views else (fgvar.Problem, "cross_entropy")
    problem = kind(net, loss, batch)
    noise = {key: u[0] for key, u in estimator.randomness(problem).sample(0, [0], dtype=torch.float64).items()}
    eager = gradient_of(problem, estimator, autocast=False, compile=False)
    compiled = torch.compile(eager, backend="aot_eager", fullgraph=True)
    (found, _), (expected, _) = (each(problem.params, batch, noise) for each in (compiled, eager))
    scale = max(float(value.abs().max()) for value in expected.values())
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-13 * scale, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"optimiser": "SGD"}, "unknown optimiser 'SGD'"),
        ({"decay": "linea"}, "unknown decay 'linea'; did you mean 'linear'"),
        ({"warmup": 20}, "warmup is 20 epochs, expected at least 0 and less than epochs=20"),
        ({"lr": -1.0}, "lr > 0"),
        ({"readout_factor": -0.1}, "factors ≥ 0"),
    ],
)
def test_errors(words, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fgvar.Schedule(**words)


def test_unknown_probe_route(data) -> None:
    with pytest.raises(ValueError, match="unknown route 'exat'; did you mean 'exact'"):
        fgvar.Probe({"BP": fgvar.scheme("BP")}, data[0].sample(4, seed=0), (1,), route="exat")


def test_every_run_of_a_process_is_compiled_for_its_own_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo counts compilations by code object: shared by all runs, it gave up after the eighth, silently."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for size in (3, 4, 5):
            net = torch.nn.Linear(size, 2)
            problem = fgvar.Problem(net, "cross_entropy", (torch.randn(6, size), torch.zeros(6, dtype=torch.int64)))
            gradient = gradient_of(problem, fgvar.scheme("BP"), autocast=False, compile=True)
            found, _ = gradient(problem.params, (problem.inputs, problem.targets), {})
            torch.testing.assert_close(found, dict(problem.backprop()))


@pytest.mark.parametrize(
    "words",
    [
        {"epochs": 0},
        {"batch": 0},
        {"lr": 0.0},
        {"lr": -0.1},
        {"lr": math.nan},
        {"lr": math.inf},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"momentum": math.nan},
        {"weight_decay": -1e-4},
        {"weight_decay": math.nan},
        {"weight_decay": math.inf},
    ],
    ids=str,
)
def test_schedules_out_of_range(words: dict[str, float]) -> None:
    ((name, value),) = words.items()
    with pytest.raises(ValueError, match=says(f"{name}={value}", "epochs, batch ≥ 1, lr > 0, 0 ≤ momentum < 1")):
        fgvar.Schedule(**words)


def test_an_optimiser_is_told_by_its_name() -> None:
    own = torch.optim.SGD([torch.zeros(2, requires_grad=True)], lr=0.1)
    with pytest.raises(TypeError, match=r"optimiser is SGD, expected 'sgd' or 'adam'; .*fgvar\.History"):
        fgvar.Schedule(optimiser=own)

"""Training: the whole run, against a plain loop, with and without probes."""

import numpy as np
import pytest
import torch
import xarray as xr

import fgvar
from fgvar.measurement.dataset import ENDS
from fgvar.training.objectives import Supervised
from fgvar.training.probes import EXACT
from fgvar.training.train import RunConfig, TrainingLoop, gradient_of, log_steps, steps_of

SCHEDULE = fgvar.Schedule(epochs=2, batch=32, lr=0.1, momentum=0.9, weight_decay=1e-3)


@pytest.fixture(scope="module")
def data():
    train, test = (fgvar.data.load("digits", split) for split in ("train", "test"))
    return train.subset(range(128)), test.subset(range(64))


def mixer(dtype: torch.dtype = torch.float32, head_init: str = "zero") -> fgvar.networks.LocalMixer:
    return fgvar.networks.LocalMixer(
        (1, 8, 8), 10, blocks=2, patches=2, channels=16, groups=4, head_init=head_init, seed=1
    ).to(dtype)


def test_backprop_equals_a_plain_loop(data) -> None:
    """torch's own backward, SGD and a learning rate computed by hand, in float64."""
    model = mixer(torch.float64)
    run = fgvar.train(model, fgvar.scheme("BP"), data, SCHEDULE, seed=3, device="cpu")
    total, step = steps_of(SCHEDULE, 128), 0
    velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for epoch in range(2):
        for x, y in data[0].batches(32, seed=3, epoch=epoch, dtype=torch.float64):
            model.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            with torch.no_grad():
                for name, p in model.named_parameters():
                    gradient = torch.zeros_like(p) if p.grad is None else p.grad
                    velocity[name] = 0.9 * velocity[name] + gradient + (1e-3 * p if p.ndim > 1 else 0)
                    p -= 0.1 * (1 - step / total) * velocity[name]
            step += 1
    for name, p in model.named_parameters():
        torch.testing.assert_close(run.params[name], p.detach(), rtol=1e-9, atol=1e-10)


def test_probing_never_changes_the_run(data) -> None:
    probe = fgvar.Probe(
        {"FG-W": fgvar.scheme("FG-W"), "LG-BP": fgvar.scheme("LG-BP")}, data[0].sample(8, seed=1), (1, 3, 8), draws=32
    )
    without = fgvar.train(mixer(), fgvar.scheme("LG-FG-A"), data, SCHEDULE)
    with_probes = fgvar.train(mixer(), fgvar.scheme("LG-FG-A"), data, SCHEDULE, probe=probe)
    for name, p in without.params.items():
        assert torch.equal(p, with_probes.params[name]), name
    for name in ("loss", "train_error", "test_error"):
        xr.testing.assert_equal(without.dataset[name], with_probes.dataset[name])
    assert list(with_probes.dataset["step"].values) == [1, 3, 8]
    assert {"step", "estimator", "layer"} <= set(with_probes.dataset["variance"].dims)


def test_probes_measure_the_weights_of_their_step(data) -> None:
    """The probe after one update is a measurement at the weights after one update."""
    model, batch = mixer(), data[0].sample(8, seed=1)
    probe = fgvar.Probe({"FG-A": fgvar.scheme("FG-A")}, batch, (1,), draws=32, seed=7)
    run = fgvar.train(model, fgvar.scheme("LG-FG-A"), data, SCHEDULE, seed=2, probe=probe)

    estimator = fgvar.scheme("LG-FG-A")
    first = next(data[0].batches(32, seed=2, epoch=0))
    problem = fgvar.Problem(model, "cross_entropy", first)
    gradient = gradient_of(problem, estimator, autocast=False, compile=False)
    going = TrainingLoop(problem, estimator, gradient, Supervised("cross_entropy"), RunConfig(SCHEDULE, 8, seed=2))
    going.update(first)
    direct = fgvar.measure({"FG-A": fgvar.scheme("FG-A")}, problem.at(going.params, batch), draws=32, seed=7)
    for name in ("variance", "cosine", "gradient_norm"):
        np.testing.assert_allclose(run.dataset[name].isel(step=0), direct[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("first", [0, 5])
def test_noise_that_is_drawn_ahead_is_each_update_s_own(data, first: int) -> None:
    """Of sixteen updates at once, from wherever a run goes on: bit by bit what a draw of its own would be."""
    estimator = fgvar.scheme("LG-FG-A")
    problem = fgvar.Problem(mixer(), "cross_entropy", data[0].sample(32, seed=0))
    gradient = gradient_of(problem, estimator, autocast=False, compile=False)
    going = TrainingLoop(problem, estimator, gradient, Supervised("cross_entropy"), RunConfig(SCHEDULE, 40, seed=3))
    for going.step in range(first, 35):
        alone = going.randomness.sample(3, [going.step])
        for name, u in going.noise.of(going.step).items():
            assert torch.equal(u, alone[name][0]), (going.step, name)
    assert len(going.noise.drawn) == 13, "updates 35 to 47: drawn, and not yet taken"


@pytest.mark.parametrize("name", ["BP", "L-BP", "LG-BP", "LG-FG-A"])
def test_the_loss_goes_down(data, name: str) -> None:
    # So short a run is chaotic, by the last bits of a CPU: over six seeds the loss ends at 0.24 to 0.77 of its first.
    schedule = fgvar.Schedule(epochs=15, batch=32, lr=0.3, momentum=0.5)
    run = fgvar.train(mixer(), fgvar.scheme(name), data, schedule).dataset
    assert run["loss"][0] == pytest.approx(np.log(10), abs=1e-4), "zero heads: every class is equally likely"
    assert run["loss"][-1] < 0.9 * run["loss"][0]
    assert run["train_error"][-1] < run["train_error"][0]
    assert run.attrs["train_lr"] == 0.3


@pytest.mark.parametrize("name", ["BP", "FG-W", "MeZO", "FG-A", "LG-FG-A"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_loss_in_more_digits_than_the_parameters_trains(data, name: str, dtype: torch.dtype) -> None:
    def wide(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        more = logits.to(torch.float32 if dtype == torch.bfloat16 else torch.float64)
        return torch.nn.functional.cross_entropy(more, targets, reduction="none")

    run, named = (
        fgvar.train(mixer(dtype), fgvar.scheme(name), data, SCHEDULE, loss=x) for x in (wide, "cross_entropy")
    )
    assert {value.dtype for value in run.params.values()} == {dtype}
    assert float(named.params["readout.linear.weight"].norm()) > 0.1
    if dtype == torch.bfloat16:  # in which the loss that has a name is computed in float32, too
        assert all(torch.equal(value, named.params[key]) for key, value in run.params.items())
    np.testing.assert_allclose(run.dataset["loss"], named.dataset["loss"], rtol=0.05)  # so short a run is chaotic


@pytest.mark.parametrize("name", ["FG-W", "FG-A", "LG-FG-W", "LG-FG-A"])
def test_a_run_is_repeated_bit_by_bit(data, name: str) -> None:
    one, two = (fgvar.train(mixer(), fgvar.scheme(name), data, SCHEDULE, seed=4).params for _ in range(2))
    assert all(torch.equal(p, two[key]) for key, p in one.items())
    other = fgvar.train(mixer(), fgvar.scheme(name), data, SCHEDULE, seed=5).params
    assert any(not torch.equal(p, other[key]) for key, p in one.items())


def test_the_module_is_left_as_it_was(data) -> None:
    model = mixer()
    before = {name: p.clone() for name, p in model.named_parameters()}
    fgvar.train(model, fgvar.scheme("BP"), data, SCHEDULE)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
        assert p.requires_grad
        assert p.grad is None


class Tied(torch.nn.Module):
    """Two layers of one weight, and a norm that has buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = torch.nn.Linear(64, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
        self.c.weight = self.b.weight
        self.norm, self.out = torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(self.c(self.b(self.a(x.flatten(1)).tanh()).tanh())))


def with_heads(net: torch.nn.Module) -> torch.nn.Module:
    return fgvar.with_local_heads(net, after=("a", "b"), classes=10)


@pytest.mark.parametrize("copied", [lambda net: net, fgvar.with_sites, with_heads], ids=["plain", "sites", "heads"])
def test_a_run_s_parameters_load_into_its_module(data, copied) -> None:
    """Strictly, by all names of a tied weight and with the buffers; and into a problem."""
    torch.manual_seed(0)
    net = copied(Tied().eval())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    run = fgvar.train(net, fgvar.scheme("BP"), data, fgvar.Schedule(epochs=1, batch=32), device="cpu")
    problem = fgvar.Problem(net, "cross_entropy", data[0].sample(8, seed=0))
    moved = problem.at(run.params)
    net.load_state_dict(run.params, strict=True)
    assert net.b.weight is net.c.weight
    assert not torch.equal(net.c.weight, before["c.weight"])
    assert torch.equal(run.params["c.weight"], run.params["b.weight"])
    assert torch.equal(moved.loss(), fgvar.Problem(net, "cross_entropy", data[0].sample(8, seed=0)).loss())
    shifted = problem.at({**run.params, "norm.running_mean": before["norm.running_mean"] + 1})
    assert not torch.equal(shifted.loss(), moved.loss()), "buffers of a state dict count"


def test_log_steps() -> None:
    assert log_steps(12, 880)[0] == 1
    assert log_steps(12, 880)[-1] == 880
    assert len(log_steps(12, 880)) >= 11
    assert log_steps(5, 2) == (1, 2)


def test_the_logger_is_two_lines_of_tensorboard(data, tmp_path) -> None:
    """The lines of `train`'s docstring, with the real writer where TensorBoard is installed."""
    tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="TensorBoard is not installed")
    writer = tensorboard.SummaryWriter(tmp_path)
    fgvar.train(
        mixer(), fgvar.scheme("LG-FG-A"), data, SCHEDULE,
        logger=lambda step, values: [writer.add_scalar(k, v, step) for k, v in values.items()],
    )  # fmt: skip
    writer.close()
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert all(name in written for name in (b"loss", b"train_error", b"test_error"))


def test_a_probe_of_both_routes_has_closed_forms_where_there_are_some_and_draws_elsewhere(data) -> None:
    """Also of estimators without noise, which either route measures exactly, wherever they stand among the others."""
    problem = fgvar.Problem(mixer(head_init="kaiming"), "cross_entropy", data[0].sample(8, seed=1))
    schemes = {name: fgvar.scheme(name) for name in ("BP", "FG-W", "LG-BP", "LG-FG-A")}
    drawn, exact, both = (
        fgvar.Probe(schemes, (problem.inputs, problem.targets), (1,), draws=32, route=route).measure(problem, 1)
        for route in ("drawn", "exact", "both")
    )
    closed = {name for name in drawn if any(str(name).removesuffix(end) in EXACT for end in ("", *ENDS))}
    assert {"variance_se", "sq_bias_high", "snr"} <= closed < set(drawn)
    for name in set(drawn) - {"seconds"}:
        xr.testing.assert_identical(both[name], (exact if name in closed else drawn)[name])
    none = {name: scheme for name, scheme in schemes.items() if name.endswith("BP")}
    quiet = fgvar.Probe(none, (problem.inputs, problem.targets), (1,), draws=32, route="both").measure(problem, 1)
    xr.testing.assert_equal(quiet.drop_vars("seconds"), both.sel(estimator=list(none)).drop_vars("seconds"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: {name: value.double() for name, value in g.items()}, r"has dtype torch.float64 for 'block0"),
        (lambda g: dict(list(g.items())[1:]), r"has nothing for 'block0.*give every parameter an entry"),
        (lambda g: {name: value[:1] for name, value in g.items()}, r"has \(1,.*as in problem.params"),
    ],
    ids=["dtype", "missing", "shape"],
)
def test_an_estimate_unlike_the_parameters_is_told(data, change, message: str) -> None:
    own = fgvar.testing.from_function(lambda problem, _: change(problem.backprop()))
    with pytest.raises(ValueError, match=message):
        fgvar.train(mixer(), own, data, SCHEDULE)


@pytest.mark.parametrize("name", ["BP", "FG-W", "MeZO"])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_how_parameters_lie_in_memory_changes_nothing(name: str, optimiser: str) -> None:
    """Fused optimisers take parameter and gradient number by number as they lie."""
    torch.manual_seed(0)
    rows = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(64, 5))
    rows = rows.double()
    last = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(64, 5))
    last = last.double()
    last.load_state_dict(rows.state_dict())
    last.to(memory_format=torch.channels_last)
    last[3].weight = torch.nn.Parameter(rows[3].weight.detach().t().contiguous().t())
    data = fgvar.data.Examples(torch.randn(32, 3, 6, 6, dtype=torch.float64), torch.arange(32) % 5)
    schedule = fgvar.Schedule(epochs=2, batch=8, lr=0.01, momentum=0.9, optimiser=optimiser)
    one, other = (fgvar.train(net, fgvar.scheme(name), data, schedule).params for net in (rows, last))
    assert other["0.weight"].stride() != one["0.weight"].stride()
    for key, value in one.items():
        assert float((value - rows.state_dict()[key]).norm()) > 1e-3
        torch.testing.assert_close(other[key], value, rtol=1e-9, atol=1e-9)

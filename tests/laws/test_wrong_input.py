"""Wrong input of calls: a sentence with what was got and what is expected, before any work."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fgvar
from fgvar import theory
from fgvar.measurement.data_variance import DataVariance
from fgvar.testing import check_estimator, covariance, expectation, from_function, unbiased

X, Y = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1, 0])


def linear() -> fgvar.Problem:
    return fgvar.Problem(nn.Linear(3, 2), "cross_entropy", (X, Y))


class Mine:
    """The gradient, or what is made of it; its target, or what is made of that."""

    def __init__(self, estimate: Callable = lambda g: g, target: Callable = lambda g: g) -> None:
        self.change, self.aim = estimate, target

    def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:  # noqa: ARG002
        return fgvar.Randomness({"u": fgvar.Leaf((), fgvar.Gaussian())})

    def estimate(self, problem: fgvar.Problem, noise: dict[str, Tensor]) -> fgvar.Estimate:
        return fgvar.Estimate(self.change({k: g * (1 + noise["u"]) for k, g in problem.backprop().items()}))

    def target(self, problem: fgvar.Problem) -> dict[str, Tensor]:
        return self.aim(problem.backprop())


# ---- measure -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimator", "match"),
    [
        (Mine(target=lambda _: None), "the target of estimator 'mine' is NoneType, expected a dict like problem"),
        (Mine(target=fgvar.Estimate), "the target of estimator 'mine' is Estimate, expected a dict"),
        (Mine(target=lambda g: dict.fromkeys(g, 1.0)), "'mine' has float for 'weight', expected a tensor"),
        (Mine(lambda g: list(g.values())), "the estimate is list, expected a dict like problem.params"),
        (Mine(lambda g: {**g, "bias": None}), "the estimate has NoneType for 'bias', expected a tensor"),
        (
            Mine(lambda g: {k: v.to_sparse() for k, v in g.items()}),
            r"the estimate is torch.sparse_coo for 'weight', expected a dense tensor; give \.to_dense\(\)",
        ),
    ],
)
def test_gradients_of_another_kind(estimator: Mine, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        fgvar.measure({"mine": estimator}, linear(), draws=4, chunk=1)


def test_a_graph_that_is_left_on_an_estimate_does_no_harm() -> None:
    graph = Mine(*[lambda g: {k: v.clone().requires_grad_() for k, v in g.items()}] * 2)
    problem = linear()
    found, expected = (fgvar.measure({"m": one}, problem, draws=4, chunk=1) for one in (graph, Mine()))
    assert found["variance"].equals(expected["variance"])


def test_targets_of_examples_are_of_a_copy() -> None:
    """A target that writes where the draws do not see it leaves the caller's problem as it was."""

    def writes(problem: fgvar.Problem) -> dict[str, Tensor]:
        if problem.batch_size == 1:
            problem.params["bias"].add_(1)
        return problem.backprop()

    problem = linear()
    before = problem.params["bias"].clone()
    fgvar.measure({"mine": from_function(lambda p, _: p.backprop(), target=writes)}, problem, draws=4, chunk=1)
    assert torch.equal(problem.params["bias"], before)


# ---- plain calls -------------------------------------------------------------------------------------------------


class Branching(nn.Sequential):
    """Its forward asks a number of a tensor, which vmap cannot."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x)
        return out * 2 if out.sum().item() > 1e9 else out


def branching() -> fgvar.Problem:
    return fgvar.Problem(Branching(nn.Linear(3, 2)), "cross_entropy", (X, Y))


VMAP = r"^the network \(Branching\) does not run under torch\.func\.vmap"


def without_branch(problem: fgvar.Problem) -> fgvar.Problem:
    return fgvar.Problem(nn.Sequential(nn.Linear(3, 2)), "cross_entropy", (X, Y)).at(problem.params)


@pytest.mark.parametrize(
    ("names", "route"), [(("FG-W",), "drawn"), (("FG-W",), "exact"), (("SPSA", "MeZO"), "drawn")]
)
def test_networks_that_vmap_cannot_are_measured_by_plain_calls_with_one_warning(
    names: tuple[str, ...], route: str
) -> None:
    problem, estimators = branching(), {name: fgvar.scheme(name) for name in names}
    with pytest.warns(UserWarning, match=VMAP) as caught:
        found = fgvar.measure(estimators, problem, draws=8, route=route)
    (told,) = [str(one.message) for one in caught if "vmap" in str(one.message)]
    assert "github" not in told
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fgvar.measure(estimators, problem, draws=8, route=route)  # one warning a problem, not a measurement
        expected = fgvar.measure(estimators, branching().at(problem.params), draws=8, route=route, chunk=1)
    for name in ("variance", "data_variance", "cosine"):
        torch.testing.assert_close(
            torch.tensor(found[name].values), torch.tensor(expected[name].values), equal_nan=True
        )
    torch.testing.assert_close(
        torch.tensor(DataVariance(without_branch(problem), 4).of(fgvar.scheme("FG-W")).value),
        torch.tensor(found["data_variance"].values[0]),
    )


@pytest.mark.parametrize(
    ("estimator", "route"),
    [
        (fgvar.scheme("SPSA", directions=2), "drawn"),
        (fgvar.scheme("FG-W", shared=False), "drawn"),
        (fgvar.scheme("FG-W", shared=False), "exact"),
    ],
)
@pytest.mark.parametrize("chunk", [1, None])
def test_directions_and_examples_that_vmap_cannot_are_taken_one_by_one(
    estimator: fgvar.Estimator, route: str, chunk: int | None
) -> None:
    problem = branching()
    with pytest.warns(UserWarning, match=VMAP) as caught:
        found = fgvar.measure({"a": estimator}, problem, draws=4, route=route, chunk=chunk)
    assert len([one for one in caught if "vmap" in str(one.message)]) == 1
    expected = fgvar.measure({"a": estimator}, without_branch(problem), draws=4, route=route)
    for name in ("variance", "slope", "data_variance"):
        torch.testing.assert_close(torch.tensor(found[name].values), torch.tensor(expected[name].values))


@pytest.mark.parametrize(
    "estimator", [fgvar.scheme("FG-W", shared=False), fgvar.scheme("FG-A")], ids=["FG-W", "FG-A"]
)
def test_enumerations_and_closed_forms_of_what_vmap_cannot(estimator: fgvar.Estimator) -> None:
    """Site Jacobians, too, which a layer that is not linear takes."""

    def built(kind: type[nn.Sequential]) -> fgvar.Problem:
        torch.manual_seed(0)
        net = kind(nn.Sequential(nn.Linear(3, 2), nn.PReLU()), nn.Linear(2, 2)).double()
        return fgvar.Problem(fgvar.with_sites(net, sites=["0", "1"]), "cross_entropy", (X.double(), Y))

    asks, plain = built(Branching), built(nn.Sequential)
    with pytest.warns(UserWarning, match=VMAP):
        found = [f(estimator, asks) for f in (theory.variance, expectation, covariance)]
    expected = [f(estimator, plain) for f in (theory.variance, expectation, covariance)]
    torch.testing.assert_close(found, expected)


def test_other_errors_under_vmap_are_their_own() -> None:
    with pytest.raises(RuntimeError, match=r"^mine$"):
        linear().per_example(lambda _: (_ for _ in ()).throw(RuntimeError("mine")))


def test_no_memory_is_no_reason_for_plain_calls() -> None:
    def exhausted(_: dict[str, Tensor]) -> dict[str, Tensor]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fgvar.measure({"mine": Mine(exhausted)}, linear(), draws=4)


# ---- the testing kit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "kind", "match"),
    [
        ({"checks": "unbiased"}, TypeError, "checks is 'unbiased', expected one or more names of CHECKS"),
        ({"checks": []}, TypeError, r"checks is \[\], expected one or more names"),
        ({"checks": 3}, TypeError, "checks is 3, expected one or more names"),
        ({"level": "a"}, ValueError, "level is 'a', expected a false-alarm rate between 0 and 1"),
        ({"problems": 3}, TypeError, r"problems is int, expected fgvar\.Problem, several, or name → problem"),
        ({"problems": "linear"}, TypeError, "problems is str, expected"),
        ({"problems": nn.Linear(3, 2)}, TypeError, "problems is Linear, expected"),
        ({"problems": {1: linear()}}, TypeError, "a problem is named 1, expected a text"),
    ],
)
def test_check_estimator(change: dict, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        check_estimator(fgvar.scheme("FG-W"), **change)


@pytest.mark.parametrize(
    ("change", "kind", "match"),
    [
        ({"estimators": {}}, ValueError, "no estimator to draw; give one, or name → estimator"),
        ({"problem": nn.Linear(3, 2)}, TypeError, r"problem is Linear, expected fgvar\.Problem\(module, loss"),
        ({"level": None}, ValueError, "level is None, expected a false-alarm rate"),
        ({"seed": "a"}, TypeError, "seed is 'a', expected a non-negative integer"),
        ({"seed": 1.5}, TypeError, r"seed is 1\.5, expected a non-negative integer"),
        ({"seed": -1}, ValueError, "seed is -1, expected a non-negative"),
        ({"chunk": 0}, ValueError, "chunk is 0, expected an integer of at least 1"),
    ],
)
def test_unbiased(change: dict, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        unbiased(**{"estimators": fgvar.scheme("FG-W"), "problem": linear(), **change})


@pytest.mark.parametrize("law", [expectation, covariance])
def test_laws(law: Callable) -> None:
    with pytest.raises(TypeError, match="'estimator' is the text 'FG-W', expected an estimator"):
        law("FG-W", linear())
    with pytest.raises(TypeError, match=r"problem is Linear, expected fgvar\.Problem"):
        law(fgvar.scheme("FG-W"), nn.Linear(3, 2))


@pytest.mark.parametrize("step", ["a", [1], float("inf"), 0, float("nan")])
def test_steps_of_black_boxes(step: object) -> None:
    with pytest.raises(ValueError, match=r"step is .*, expected a positive number"):
        from_function(lambda p, _: p.backprop(), step=step)


def test_steps_of_differences() -> None:
    with pytest.raises(TypeError, match="step is 'a', expected a positive number"):
        fgvar.oracles.CentralDifference("a")


# ---- training and files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "kind", "match"),
    [
        ({"module": nn.Linear}, TypeError, r"module is the class Linear, expected an instance: Linear"),
        ({"module": nn.ReLU()}, ValueError, "ReLU has no parameters"),
        ({"data": ((X, Y), (X, Y))}, TypeError, r"data is tuple of tuple, tuple, expected fgvar\.data\.Examples"),
        ({"data": None}, TypeError, r"data is NoneType, expected fgvar\.data\.Examples"),
        ({"schedule": {"epochs": 1}}, TypeError, r"schedule is dict, expected an instance: fgvar\.Schedule"),
        ({"schedule": fgvar.Schedule}, TypeError, "schedule is the class Schedule, expected an instance"),
        ({"seed": -1}, ValueError, "seed is -1, expected a non-negative"),
        ({"seed": 2**64}, ValueError, r"seed is 18\d+, expected less than 2\*\*64, as every result is stored"),
        ({"seed": "a"}, TypeError, "seed is 'a', expected a non-negative integer"),
        ({"device": "gpu"}, ValueError, "device is 'gpu', expected a device of this machine, as 'cpu'"),
    ],
)
def test_train(change: dict, kind: type[Exception], match: str) -> None:
    data = fgvar.data.load("digits"), fgvar.data.load("digits", "test")
    given = {"module": fgvar.networks.MLP(64, width=8, depth=1, classes=10, seed=0),
             "estimator": fgvar.scheme("FG-W"), "data": data, "schedule": fgvar.Schedule(epochs=1)}  # fmt: skip
    with pytest.raises(kind, match=match):
        fgvar.train(**{**given, **change})


def test_estimators_in_training_write_into_copies() -> None:
    """Parameters, buffers and the batch are of the run: what is written to them is gone by the next update."""

    class Shifted(nn.Linear):
        def __init__(self) -> None:
            super().__init__(64, 10)
            self.register_buffer("shift", torch.zeros(10))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = super().forward(x.flatten(1)) + self.shift
            return out

    def writes(problem: fgvar.Problem, _: torch.Generator) -> dict[str, Tensor]:
        gradient = problem.backprop()
        for tensor in problem.tensors().values():
            tensor.data.zero_()
        return gradient

    torch.manual_seed(0)
    net, data = Shifted(), (fgvar.data.load("digits"), fgvar.data.load("digits", "test"))
    with torch.no_grad():
        net.shift.fill_(0.5)
    two = from_function(writes), from_function(lambda problem, _: problem.backprop())
    wrote, right = (fgvar.train(net, one, data, fgvar.Schedule(epochs=1)).params for one in two)
    assert wrote.keys() == right.keys()
    assert all(torch.equal(wrote[name], right[name]) for name in right)
    assert bool((net.shift == 0.5).all())


def test_train_wants_randomness() -> None:
    class Dicts(Mine):
        def randomness(self, problem: fgvar.Problem) -> dict:  # noqa: ARG002
            return {"u": ()}

    data = fgvar.data.load("digits"), fgvar.data.load("digits", "test")
    net = fgvar.networks.MLP(64, width=8, depth=1, classes=10, seed=0)
    with pytest.raises(TypeError, match=r"randomness returned dict, expected fgvar\.Randomness"):
        fgvar.train(net, Dicts(), data, fgvar.Schedule(epochs=1))


@pytest.mark.parametrize(
    ("change", "match"),
    [({"epochs": "a"}, "epochs is 'a', expected an integer"), ({"lr": "a"}, "lr is 'a', expected a number"),
     ({"batch": 1.5}, r"batch is 1\.5, expected an integer")],
)  # fmt: skip
def test_schedules_are_of_numbers(change: dict, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        fgvar.Schedule(**change)


def test_save_wants_a_dataset(tmp_path) -> None:
    with pytest.raises(TypeError, match=r"got dict to save, expected an xarray\.Dataset"):
        fgvar.save({"a": 1}, tmp_path / "a.nc")
    assert not list(tmp_path.iterdir())

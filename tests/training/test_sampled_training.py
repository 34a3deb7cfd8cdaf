"""Training by a sampler: of every batch some examples, by probabilities at the parameters of that step."""

import pytest
import torch
from fgvar.sampling import Draw, GradientNorms, Losses
from torch import Tensor

import fgvar
from fgvar.estimators.feedback import FeedbackAlignment
from fgvar.training.gradients import gradient_of

SCHEDULE = fgvar.Schedule(epochs=2, batch=16, lr=0.1, momentum=0.0, weight_decay=0.0)
IMPORTANCE = fgvar.Stochastic(sample=Draw(4, by=Losses()))


@pytest.fixture(scope="module")
def data():
    train, test = (fgvar.data.load("digits", split) for split in ("train", "test"))
    return train.subset(range(64)), test.subset(range(64))


def network() -> torch.nn.Module:
    return fgvar.networks.MLP(64, width=8, depth=1, classes=10, seed=1).double()


def test_what_is_no_single_graph_runs_as_it_is() -> None:
    """Frames inside of it, compiled without guards, would give the next estimator the numbers of this one."""

    class Broken(FeedbackAlignment):
        def estimate(self, problem: fgvar.Problem, noise: dict[str, Tensor]):
            torch._dynamo.graph_break()
            return super().estimate(problem, noise)

    torch._dynamo.reset()
    estimator = Broken()
    at = fgvar.Problem(network(), "cross_entropy", (torch.ones(4, 64).double(), torch.arange(4)))
    noise = {k: u[0] for k, u in estimator.randomness(at).sample(0, [0], dtype=at.dtype).items()}
    gradient = gradient_of(at, estimator, autocast=False, compile=True)
    with pytest.warns(UserWarning, match=r"cannot be compiled \(.*\), and runs as it is"):
        first = gradient(at.params, (at.inputs, at.targets), noise)[0]
    second = gradient(at.params, (at.inputs, at.targets), noise)[0]
    for name, expected in estimator.estimate(at, noise).gradient.items():
        assert torch.equal(first[name], expected)
        assert torch.equal(second[name], expected)


def test_a_sampler_that_asks_for_gradients_first_compiles() -> None:
    """Its scores pass through the same layers, outside of the derivative along the noise."""
    torch._dynamo.reset()
    estimator = fgvar.Stochastic(of=fgvar.scheme("FG-W"), sample=Draw(2, by=GradientNorms()))
    at = fgvar.Problem(network(), "cross_entropy", (torch.eye(4, 64).double(), torch.arange(4)))
    noise = {k: u[0] for k, u in estimator.randomness(at).sample(0, [0], dtype=at.dtype).items()}
    eager = gradient_of(at, estimator, autocast=False, compile=False)
    compiled = torch.compile(eager, backend="aot_eager", fullgraph=True)
    found, expected = (each(at.params, (at.inputs, at.targets), noise)[0] for each in (compiled, eager))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-14)


def losses(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    h = torch.relu(x.flatten(1) @ params["layer0.weight"].T + params["layer0.bias"])
    logits = h @ params["readout.linear.weight"].T + params["readout.linear.bias"]
    return torch.nn.functional.cross_entropy(logits, y, reduction="none")


def test_importance_sampling_equals_a_plain_loop(data) -> None:
    """Each step's examples are drawn by the losses at that step, and weighed 1/(m p)."""
    run = fgvar.train(network(), IMPORTANCE, data, SCHEDULE, seed=3, device="cpu")
    params = {name: p.detach().clone() for name, p in network().named_parameters()}
    step = 0
    for epoch in range(2):
        for x, y in data[0].batches(16, seed=3, epoch=epoch, dtype=torch.float64):
            before = losses(params, x, y)
            p = before / before.sum()
            law = fgvar.Randomness({"sample": fgvar.Leaf((4,), fgvar.noise.Choice(p, adapted=True))})
            chosen = law.sample(3, [step], dtype=torch.float64)["sample"][0]
            at = {name: value.clone().requires_grad_() for name, value in params.items()}
            loss = (losses(at, x[chosen], y[chosen]) / (4 * p[chosen])).sum() / 16
            gradient = torch.autograd.grad(loss, list(at.values()))
            for (name, value), g in zip(params.items(), gradient, strict=True):
                params[name] = value - 0.1 * (1 - step / 8) * g
            step += 1
    assert step == 8
    for name, value in params.items():
        torch.testing.assert_close(run.params[name], value, rtol=1e-9, atol=1e-12)

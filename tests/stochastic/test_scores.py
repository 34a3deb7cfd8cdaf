"""Scores: what each says of examples and terms, that it is constant, and what it refuses."""

import pytest
import torch
from cases import labels, mixer, randn
from fgvar.sampling import Draw, GradientNorms, Losses, Mixed, Outputs, Reweighted, TermSizes, Uniform, Union
from latents import latent
from torch import Tensor, nn

import fgvar
from fgvar.stochastic.populations import probabilities


def examples() -> fgvar.Problem:
    torch.manual_seed(0)
    return fgvar.Problem(fgvar.with_sites(nn.Linear(3, 2).double()), "cross_entropy", (randn(5, 3), labels(5, 2)))


def test_scores_of_examples_by_loops() -> None:
    at = examples()
    net, y = nn.Linear(3, 2).double(), at.targets
    net.load_state_dict({name.split(".")[-1]: p for name, p in at.params.items()})
    norms, losses, outputs = [], [], []
    for n in range(5):
        net.zero_grad()
        found = net(at.inputs[n : n + 1])
        loss = nn.functional.cross_entropy(found, y[n : n + 1])
        loss.backward()
        norms.append(torch.cat([p.grad.flatten() for p in net.parameters()]).norm())
        losses.append(loss.detach())
        outputs.append(found.detach().abs().mean())
    expected = {
        GradientNorms(): norms,
        Losses(): [x / max(losses) for x in losses],
        Outputs(): outputs,
        Losses(-0.5): [(x / min(losses)) ** -0.5 for x in losses],
    }
    for by, values in expected.items():
        torch.testing.assert_close(by.scores(at, "batch"), torch.stack(values), rtol=1e-12, atol=1e-15)
    assert Uniform().scores(at, "batch").tolist() == [1] * 5
    p = probabilities(Losses().scores(at, "batch"))
    torch.testing.assert_close(Mixed(Losses(), uniform=0.25).scores(at, "batch"), 0.75 * p + 0.05)


def test_powers_of_losses_leave_no_range() -> None:
    """In 16 bits 20⁴ is infinite and (10⁻⁴)² is 0: the loss to a power is told in 64, over the largest."""
    for residuals in ([1.0, 5.0, 20.0], [0.01, 0.0125, 1.0]):
        net = nn.Linear(2, 2).half()
        nn.init.eye_(net.weight), nn.init.zeros_(net.bias)
        shift = torch.tensor(residuals, dtype=torch.float16)[:, None]
        at = fgvar.Problem(net, "mse", (torch.ones(3, 2).half(), torch.ones(3, 2).half() + shift))
        losses = at.losses(at.run(at.params)[0]).double()
        p = probabilities(Losses(2.0).scores(at, "batch"))
        torch.testing.assert_close(p, losses**2 / (losses**2).sum(), rtol=1e-12, atol=0)
        assert (p > 0).all()
    steep = probabilities(Losses(100.0).scores(examples().to(torch.float32), "batch"))
    assert steep.isfinite().all()


def test_norms_of_examples_are_told_in_half_precision() -> None:
    x = torch.full((2, 90_000), 300.0).half() * torch.tensor([[1.0], [0.5]]).half()
    net = nn.Linear(90_000, 1, bias=False, dtype=torch.float16)
    problem = fgvar.Problem(net, lambda outputs, _: outputs[:, 0] * 0 + outputs[:, 0], (x, torch.zeros(2).half()))
    assert GradientNorms().scores(problem, "batch").tolist() == [90_000, 45_000]


def test_weights_of_a_loss_are_part_of_what_is_scored() -> None:
    """Scores are of the terms of the mean, n w ℓ/Σw."""
    w = torch.tensor([1.0, 2.0, 5.0]).double()

    def loss(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return nn.functional.cross_entropy(outputs, targets, reduction="none"), w[: len(outputs)]

    torch.manual_seed(0)
    net, batch = nn.Linear(3, 2).double(), (randn(3, 3), labels(3, 2))
    plain = fgvar.Problem(net, "cross_entropy", batch)
    weighted = fgvar.Problem(net, lambda o, t: (loss(o, t[0])[0], t[1]), (batch[0], [batch[1], w]))
    for by in (Losses(), GradientNorms()):
        expected = probabilities(by.scores(plain, "batch") * w)
        torch.testing.assert_close(probabilities(by.scores(weighted, "batch")), expected)


def test_outputs_of_any_structure() -> None:
    """Of all that has the examples first; of one module by its name."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"z": self.a(x), "one": x[:, 0], "index": torch.arange(len(x)), "scale": x.new_ones(2)}

    torch.manual_seed(0)
    at = fgvar.Problem(Two().double(), lambda o, t: o["z"].square().sum(1) + t, (randn(4, 3), torch.zeros(4)))
    outputs = at.run(at.params)[0]
    expected = torch.cat([outputs["z"], outputs["one"][:, None]], 1).abs().mean(1)
    torch.testing.assert_close(Outputs().scores(at, "batch"), expected)
    torch.testing.assert_close(Outputs("a").scores(at, "batch"), outputs["z"].abs().mean(1))


@pytest.mark.parametrize("log", [False, True])
def test_scores_of_terms(log: bool) -> None:
    """Sizes of the terms as the parameters have them: whatever ω the problem has already is no part of them."""
    at = latent(log=log)
    watched = at.run(at.params, watch=["q", "f", "logits"])[1]
    expected = watched["q"] * watched["f"].square()
    found = TermSizes().scores(at, "latent")
    torch.testing.assert_close(probabilities(found), expected / expected.sum(-1, keepdim=True))
    torch.testing.assert_close(Outputs("q").scores(at, "latent"), watched["q"])
    assert Uniform().scores(at, "latent").shape == (2, 4)
    omega = torch.tensor([[0.0, 4, 0, 0], [0, 0, 2, 2]], dtype=torch.float64)
    module = at.network.modules["latent"]
    for by in (TermSizes(), Outputs("q"), Mixed(TermSizes(), 0.1)):
        sampled = at.tapped("latent", module.tap_of(omega))
        torch.testing.assert_close(by.scores(sampled, "latent"), by.scores(at, "latent"), rtol=0, atol=0)


def every_score() -> list[tuple[object, str]]:
    batch = [(by, "batch") for by in (Uniform(), Losses(), Outputs(), GradientNorms(), Mixed(Losses()))]
    return batch + [(by, "latent") for by in (Uniform(), TermSizes(), Outputs("q"), Mixed(TermSizes()))]


@pytest.mark.parametrize(("by", "over"), every_score(), ids=repr)
def test_scores_are_constant(by: object, over: str) -> None:
    """No derivative passes through them: not in torch.func.grad, nor forward mode, nor autograd."""
    at = latent()

    def total(params: dict[str, Tensor]) -> Tensor:
        return by.scores(at.at(params), over).square().sum() + 0 * params["f.bias"].sum()

    assert not any(g.any() for g in torch.func.grad(total)(at.params).values())
    tangents = {name: torch.ones_like(p) for name, p in at.params.items()}
    assert torch.func.jvp(total, (at.params,), (tangents,))[1] == 0
    with_graph = {name: p.clone().requires_grad_() for name, p in at.params.items()}
    assert not by.scores(at._with(params=with_graph), over).requires_grad


@pytest.mark.parametrize(
    "sample",
    [Draw(2, by=Losses()), Draw(2, by=GradientNorms()), Reweighted(Losses()), Draw(1, over="latent", by=TermSizes())],
)
def test_omega_is_constant_in_the_estimate(sample: object) -> None:
    """The estimate is Σ ω ∇, without ∇ω: that of the same problem with ω as plain numbers."""
    at = latent(3)
    estimator = fgvar.Stochastic(sample=sample)
    noise = {k: u[0] for k, u in estimator.randomness(at).sample(0, [0], dtype=torch.float64).items()}
    found = estimator.estimate(at, noise).gradient
    seen = sample.view(at, {k.removeprefix("sample").removeprefix("."): u for k, u in noise.items()}, at)
    expected = torch.func.grad(seen.loss)(at.params)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)
    assert any(value.any() for value in found.values())


def test_probabilities_follow_the_batch_and_the_parameters() -> None:
    """Adapted laws are asked for anew where either changes; a uniform one is the same."""
    at = examples()
    for by, adapted in (
        (Losses(), True),
        (Uniform(), False),
        (Mixed(Losses(), uniform=1.0), False),
        (Mixed(Outputs()), True),
    ):
        assert by.adapted == adapted
        assert fgvar.Stochastic(sample=Draw(2, by=by)).randomness(at).adapted == adapted
    assert not Mixed(Losses(), uniform=1.0).of_loss
    assert Mixed(Losses()).of_loss


def test_scores_inside_measure_are_those_at_the_parameters() -> None:
    """Measured by vmap and by plain calls alike, on a network with local heads, too."""
    at = mixer(batch=4)
    for by in (Losses(), GradientNorms(), Outputs(), Mixed(Losses(), 0.2)):
        row = {"a": fgvar.Stochastic(sample=Draw(2, by=by))}
        one, other = (fgvar.measure(row, at, draws=16, chunk=chunk)["variance"] for chunk in (1, 16))
        assert float(abs(one - other).max()) < 1e-12


def test_refusals() -> None:
    at, terms, two = examples(), latent(), (torch.ones(2, 3), torch.ones(2, 2))
    for by in (Losses(), GradientNorms()):
        with pytest.raises(
            ValueError, match=r"scores examples, over is 'latent'; expected over='batch', or .*TermSizes"
        ):
            Draw(1, by=by, over="latent").leaves(terms)
    uniform = fgvar.noise.Uniform()  # the law, where the score is meant, which has the same name
    for sampler in (lambda by: Draw(2, by=by), Reweighted, Mixed):
        with pytest.raises(TypeError, match=r"by is Uniform\(\) without adapted, .* expected one like fgvar\.sampl"):
            sampler(uniform)
        with pytest.raises(TypeError, match=r"by is the class Losses, expected an instance: Losses\(…\)"):
            sampler(Losses)
    with pytest.raises(ValueError, match="TermSizes scores terms of a sum inside the network, over is 'batch'"):
        Draw(1, by=TermSizes()).leaves(at)
    with pytest.raises(
        ValueError, match=r"unknown module of Outputs 'Q'; did you mean 'q'\? \(valid: f, latent, logits, q\)"
    ):
        Outputs("Q").scores(terms, "latent")
    with pytest.raises(
        ValueError, match=r"terms \(2, 4\) of 'latent' by the network's outputs; expected Outputs\('name'\)"
    ):
        Outputs().scores(terms, "latent")
    at = fgvar.Problem(nn.Sequential(nn.Linear(3, 4), fgvar.Terms(), nn.Linear(4, 2)), "mse", two)
    with pytest.raises(
        ValueError, match=r"terms \(2, 4\) of '1' by '2', of shape \(2, 2\); .* a number for each term"
    ):
        Outputs("2").scores(at, "1")
    with pytest.raises(ValueError, match=r"uniform is 1\.5, expected a share between 0 and 1"):
        Mixed(Losses(), uniform=1.5)
    with pytest.raises(ValueError, match="found no floating-point tensor with 5 examples first; name a module"):
        Outputs()._of_examples(torch.arange(5), 5)
    below = losses_below_0()
    for power in (1, -0.5, 2):
        with pytest.raises(
            ValueError, match=r"scores by Losses\(power=.*\) reach from -\d.* expected finite numbers from 0 on"
        ):
            Draw(1, by=Losses(power)).leaves(below)


def losses_below_0() -> fgvar.Problem:
    return fgvar.Problem(nn.Linear(3, 1).double(), lambda o, t: o[:, 0] - 5 + 0 * t, (randn(4, 3), torch.zeros(4)))


@pytest.fixture
def unread(monkeypatch) -> None:
    """Values of scores are not looked at, as on a device that would be waited for."""
    for module in (fgvar.stochastic.draw, fgvar.stochastic.weighing):
        monkeypatch.setattr(module, "require_scores", lambda *_: None)
    monkeypatch.setattr(fgvar.estimators.choices, "require_enough", lambda *_: None)


BY = Losses()


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    "sample",
    [
        Draw(2, by=BY), Draw(2, top=1, by=BY), Draw(1, top=4, by=BY), Draw(2, by=BY, replace=False),
        Draw(2, by=BY, weigh="none"), Draw(2, by=BY, weigh="normalised"), Draw(2, by=Mixed(BY)), Reweighted(BY),
        Union((Draw(1), Draw(2, by=BY)), weigh="none"),
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_score_is_a_gradient_of_nan_where_values_are_not_read(sample: object) -> None:
    """Of examples that there are, as an index outside of the batch would end the process there; never a number."""
    at, estimator = losses_below_0(), fgvar.Stochastic(sample=sample)
    noise = {k: u[0] for k, u in estimator.randomness(at).sample(0, [0], dtype=torch.float64).items()}
    assert all(bool((u < at.batch_size).all()) for u in noise.values())
    assert all(bool(g.isnan().all()) for g in estimator.estimate(at, noise).gradient.values())
    if sample.no_closed_form(at) is None and sample != Draw(1, top=4, by=BY):
        terms = randn(4, 3)
        for law in (sample.mean, sample.squares) if isinstance(sample, Reweighted) else (sample.mean, sample.spread):
            assert bool(law(terms, at).isnan().all())


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("weigh", ["unbiased", "none", "normalised"])
def test_more_than_can_be_drawn_is_nan_where_values_are_not_read(weigh: str) -> None:
    """Two of four examples have a loss, and three are wanted, none put back."""
    y = torch.tensor([[1.0], [1.0], [0.0], [0.0]]).double()
    at = fgvar.Problem(nn.Linear(2, 1, bias=False).double(), "mse", (torch.zeros(4, 2).double(), y))
    estimator = fgvar.Stochastic(sample=Draw(3, by=BY, replace=False, weigh=weigh))
    noise = {k: u[0] for k, u in estimator.randomness(at).sample(0, [0], dtype=torch.float64).items()}
    assert bool(estimator.estimate(at, noise).gradient["weight"].isnan().all())


@pytest.mark.usefixtures("unread")
def test_training_finds_what_is_no_score() -> None:
    data = fgvar.data.Examples(randn(8, 3).float(), torch.zeros(8))
    with pytest.raises(fgvar.NonFiniteError, match=r"the gradient of '.*' held NaN or infinity at step 0"):
        fgvar.train(
            nn.Linear(3, 1), fgvar.Stochastic(sample=Draw(2, by=BY)), data, fgvar.Schedule(1, 4), device="cpu",
            loss=lambda o, t: o[:, 0] - 5 + 0 * t,
        )  # fmt: skip


@pytest.mark.parametrize("bad", [-1.0, torch.nan, torch.inf])
def test_probabilities_beside_what_is_no_score(bad: float) -> None:
    """Of its own row alone."""
    found = probabilities(torch.tensor([[1.0, bad, 2.0], [1.0, 1.0, 2.0], [0.0, 0.0, 0.0]]))
    assert bool(found[0].isnan().all())
    assert found[1].tolist() == [0.25, 0.25, 0.5]
    assert found[2].tolist() == pytest.approx([1 / 3] * 3)


def test_losses_of_zero_are_alike() -> None:
    zero = fgvar.Problem(nn.Linear(2, 1, bias=False).double(), "mse", (torch.zeros(2, 2).double(), torch.zeros(2, 1)))
    for by in (Losses(), Losses(-0.5), Losses(-2), GradientNorms()):
        assert Draw(1, by=by).leaves(zero)[""].noise.probabilities.tolist() == [0.5, 0.5]
    some = fgvar.Problem(
        nn.Linear(2, 1, bias=False).double(), "mse", (torch.zeros(3, 2).double(), torch.tensor([[0.0], [2], [0]]))
    )
    assert Draw(1, by=Losses(-0.5)).leaves(some)[""].noise.probabilities.tolist() == pytest.approx([0.5, 0, 0.5])
    assert Draw(1, by=Losses()).leaves(some)[""].noise.probabilities.tolist() == [0, 1, 0]

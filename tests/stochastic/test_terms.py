"""Sums inside the network: what `Terms` does to a network, and sampling of its terms."""

import pytest
import torch
from cases import mixer, randn
from fgvar.sampling import Draw, Outputs, TermSizes
from latents import Latent, latent, own
from torch import Tensor, nn

import fgvar
from fgvar.nn.sites import sites_of
from fgvar.testing import expectation


class Rows(nn.Module):
    """Two sums for each of two positions of an example, linear in the terms: as they are, and of logarithms."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(2, 3)
        self.plain, self.logs = fgvar.Terms(), fgvar.Terms(log=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.plain(self.a(x)).sum((1, 2)) + self.logs(self.b(x)).logsumexp(-1).exp().sum(1)


def rows(batch: int = 1) -> fgvar.Problem:
    torch.manual_seed(0)
    return fgvar.Problem(Rows().double(), own, (randn(batch, 2, 2), torch.zeros(batch)))


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-12) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def test_terms_are_the_identity_until_somebody_weighs_them() -> None:
    z = randn(2, 3)
    for module in (fgvar.Terms(), fgvar.Terms(log=True)):
        assert module(z) is z
        assert not module.state_dict()
        assert repr(module) == ("Terms(log=True)" if module.log else "Terms()")
        omega = torch.tensor([0.0, 2, 1]).double()
        tapped = torch.func.functional_call(module, {"tap": module.tap_of(omega)}, z)
        torch.testing.assert_close(tapped.exp() if module.log else tapped, omega * (z.exp() if module.log else z))


def test_a_network_with_terms_is_a_network() -> None:
    """With sites, local heads, on the meta device, and by every scheme of weights and activities: as without them."""
    torch.manual_seed(0)
    net = Latent()
    with_terms = fgvar.with_sites(net)
    assert sites_of(with_terms) == ["logits.site", "f.site"], "terms are no site"
    assert [*with_terms.state_dict()] == [*net.state_dict()]
    with_terms.load_state_dict(net.state_dict())
    batch = (torch.ones(2, 3), torch.zeros(2))
    at = fgvar.Problem(with_terms, own, batch)
    assert {name.partition(".")[0] for name in fgvar.scheme("FG-A").randomness(at).leaves} == {"logits", "f"}
    meta = fgvar.Problem(Latent().to("meta"), own, tuple(x.to("meta") for x in batch))
    estimator = fgvar.Stochastic(sample=Draw(1, over="terms", by=TermSizes()))
    noise = {k: u[0] for k, u in estimator.randomness(meta).sample(0, [0], device="meta").items()}
    assert all(g.is_meta for g in estimator.estimate(meta, noise).gradient.values())

    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.terms, self.last = nn.Linear(3, 4), fgvar.Terms(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.terms(self.layer(x)))

    heads = fgvar.with_local_heads(
        fgvar.with_sites(Inside().double()), after=["layer"], classes=2, inputs=randn(2, 3)
    )
    local = fgvar.Problem(heads, "cross_entropy", (randn(2, 3), torch.tensor([0, 1])))
    estimator = fgvar.Stochastic(of=fgvar.scheme("LG-BP"), sample=Draw(4, replace=False, over="terms"))
    noise = {k: u[0] for k, u in estimator.randomness(local).sample(0, [0], dtype=torch.float64).items()}
    assert_close(estimator.estimate(local, noise).gradient, estimator.target(local))


SAMPLES = [
    Draw(1, over="terms"), Draw(1, over="terms", by=TermSizes()), Draw(2, over="logs", top=1, by=TermSizes()),
    Draw(2, over="plain", by=TermSizes(), replace=False), Draw(1, over="logs", top=2, by=Outputs("b"), replace=False),
]  # fmt: skip


@pytest.mark.parametrize("sample", SAMPLES, ids=repr)
def test_estimates_are_unbiased_where_the_loss_is_linear_in_the_sums(sample: Draw) -> None:
    """Each of the four rows a sum of its own, enumerated together."""
    at, estimator = rows(), fgvar.Stochastic(sample=sample)
    names = ["plain", "logs"] if sample.over == "terms" else [sample.over]
    leaves = estimator.randomness(at).leaves
    assert {name: leaf.shape for name, leaf in leaves.items()} == {f"sample.{n}": (1, 2, sample.size) for n in names}
    assert_close(expectation(estimator, at, method="support", chunk=1024), at.backprop())
    assert "sums inside the network" in str(sample.no_closed_form(at))


def test_noisy_gradients_of_a_sampled_sum() -> None:
    """FG-W and FG-A of a network with sampled terms, over the sampling and the nodes of their noise."""
    net = fgvar.with_sites(Latent())
    torch.manual_seed(1)
    at = fgvar.Problem(net.double(), own, (randn(1, 3), torch.zeros(1)))
    for name in ("FG-W", "FG-A"):
        estimator = fgvar.Stochastic(of=fgvar.scheme(name), sample=Draw(1, over="latent", by=TermSizes()))
        assert_close(expectation(estimator, at, method="support × nodes"), at.backprop())


@pytest.mark.parametrize("log", [False, True])
def test_gradients_stay_finite_where_terms_are_left_out(log: bool) -> None:
    """ω = 0, log ω = −∞: in reverse and forward mode, under vmap, and measured by it and by plain calls."""
    at = latent(3, log=log)
    estimator = fgvar.Stochastic(sample=Draw(1, over="latent", by=TermSizes()))
    noise = estimator.randomness(at).sample(0, range(8), dtype=torch.float64)
    for of in (fgvar.ExactGradient(), fgvar.scheme("FG-W")):
        row = fgvar.Stochastic(of=of, sample=estimator.sample)
        drawn = row.randomness(at).sample(0, range(8), dtype=torch.float64)
        by_vmap = torch.func.vmap(lambda one, row=row: row.estimate(at, one).gradient)(drawn)
        one_by_one = [row.estimate(at, {k: u[i] for k, u in drawn.items()}).gradient for i in range(8)]
        for name, value in by_vmap.items():
            assert bool(value.isfinite().all()), name
            torch.testing.assert_close(value, torch.stack([one[name] for one in one_by_one]))
    for chunk in (1, 8):
        ds = fgvar.measure({"a": estimator}, at, draws=8, chunk=chunk)
        assert bool(ds["variance"].notnull().all())
    at_log, at_plain = latent(3, log=True), latent(3)
    both = [estimator.estimate(one, {k: u[0] for k, u in noise.items()}).gradient for one in (at_log, at_plain)]
    assert_close(*both)


def test_a_part_of_the_batch_keeps_its_own_taps() -> None:
    at = latent(3)
    omega = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tapped = at.tapped("latent", omega)
    each = tapped.per_example(lambda one: one.loss())
    for n in range(3):
        alone = at.example(n).tapped("latent", omega[n : n + 1]).loss()
        torch.testing.assert_close(tapped.example(n).loss(), alone, rtol=0, atol=0)
        torch.testing.assert_close(each[n], alone)
    torch.testing.assert_close(tapped.rows(torch.tensor([2, 0])).loss(), each[[2, 0]].mean())


def test_terms_are_sampled_beside_examples() -> None:
    """Inside: for those drawn. Outside: of the whole batch, of which then some are drawn. Both are unbiased."""
    at = latent()
    terms, batch = Draw(1, over="latent"), Draw(1)
    for outer, inner in ((batch, terms), (terms, batch)):
        estimator = fgvar.Stochastic(of=fgvar.Stochastic(sample=inner), sample=outer)
        names = ["of.sample.latent", "sample"] if inner is terms else ["of.sample", "sample.latent"]
        assert [*estimator.randomness(at).leaves] == names
        assert_close(expectation(estimator, at, method="support", chunk=1024), at.backprop())
    with pytest.raises(ValueError, match=r"depend on the batch, which .* draws anew; sample once"):
        fgvar.Stochastic(of=fgvar.Stochastic(sample=Draw(1, over="latent", by=TermSizes())), sample=batch).randomness(
            at
        )


def test_terms_are_weighed_by_their_sizes_at_the_start_where_the_point_moves() -> None:
    """E ω = 1 by the law declared there: the mean is the gradient at the moved point."""
    at = latent()
    ahead = fgvar.points.Ahead(by=fgvar.ExactGradient(), step=0.1)
    sample = Draw(1, by=TermSizes(), over="terms")
    moved = fgvar.Stochastic(at=ahead).estimate(at, {}).gradient
    assert_close(expectation(fgvar.Stochastic(at=ahead, sample=sample), at, method="support"), moved)
    assert max(float((moved[name] - value).abs().max()) for name, value in at.backprop().items()) > 0.1
    workers = fgvar.Stochastic(sample=sample, workers=2)
    assert_close(expectation(workers, at.example(0), method="support"), at.example(0).backprop())


class Doubled:
    linear, bias_reason = True, "twice"

    def leaves(self, problem: fgvar.Problem) -> dict[str, fgvar.Leaf]:  # noqa: ARG002
        return {}

    def __call__(self, gradient: dict[str, Tensor], problem: fgvar.Problem, noise: object) -> dict[str, Tensor]:  # noqa: ARG002
        return {name: 2 * value for name, value in gradient.items()}


def test_examples_gradients_are_shaped_with_the_terms_that_each_has() -> None:
    at = latent(3)
    plain = fgvar.Stochastic(sample=Draw(1, over="latent", by=TermSizes()))
    each = fgvar.Stochastic(sample=plain.sample, each=(Doubled(),))
    noise = {k: u[0] for k, u in plain.randomness(at).sample(0, [0], dtype=torch.float64).items()}
    found = each.estimate(at, noise).gradient
    assert_close(found, {name: 2 * value for name, value in plain.estimate(at, noise).gradient.items()})


class Wrong(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.terms, self.how = nn.Linear(3, 4), fgvar.Terms(), how

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(x)
        if self.how == "twice":
            return self.terms(self.terms(z))
        if self.how == "flat":
            return self.terms(z.reshape(-1, 2)).reshape(len(x), -1)
        return z


def test_refusals() -> None:
    batch = (torch.ones(2, 3), torch.ones(2, 4))

    def leaves(module: nn.Module, over: str) -> None:
        fgvar.Stochastic(sample=Draw(1, over=over)).randomness(fgvar.Problem(module, "mse", batch))

    with pytest.raises(
        ValueError, match=r"over is 'terms', and the network has no fgvar\.Terms; expected over='batch'"
    ):
        leaves(nn.Linear(3, 4), "terms")
    with pytest.raises(ValueError, match="unknown over 'term'; did you mean 'terms'"):
        leaves(Wrong("twice"), "term")
    with pytest.raises(ValueError, match="'terms' is called twice in one forward pass"):
        leaves(Wrong("twice"), "terms")
    with pytest.raises(ValueError, match=r"shape \(4, 2\), expected the examples \(2\) along the first axis"):
        leaves(Wrong("flat"), "terms")
    with pytest.raises(ValueError, match="the terms of 'terms' have shape unknown, as it is not called"):
        leaves(Wrong("never"), "terms")
    with pytest.raises(ValueError, match="top=0 and size=5 of 4 terms"):
        fgvar.Stochastic(sample=Draw(5, replace=False, over="latent")).randomness(latent())
    with pytest.raises(ValueError, match="top=5 and size=1 of 4 terms"):
        fgvar.Stochastic(sample=Draw(1, top=5, over="latent")).randomness(latent())
    mixer_problem = mixer()
    with pytest.raises(ValueError, match=r"no fgvar\.Terms"):
        fgvar.Stochastic(sample=Draw(1, over="block0")).randomness(mixer_problem)

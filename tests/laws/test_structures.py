"""Batches of any structure, and language models: right against loops of autograd, by every route."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cases import randn
from nets import fixed
from refusals import Calls
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map

import fgvar
from fgvar.errors import NonFiniteError
from fgvar.measurement.data_variance import DataVariance
from fgvar.testing import expectation
from fgvar.training.probes import moved

IDS = torch.tensor([[0, 2, 1, 3], [1, 1, 0, 2], [3, 0, 2, 2]])
LABELS = torch.tensor([[0, 2, 1, 3], [1, 1, -100, 2], [-100, -100, 2, -100]])
MASK = torch.tensor([[True] * 4, [True, True, True, False], [True, True, False, False]])


class LanguageModel(nn.Module):
    """Embedding and linear layer; the mean over what the mask leaves is added to every position."""

    def __init__(self, logits: bool = False) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(4, 2), nn.Linear(2, 5)
        self.logits = logits

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Any:
        h = self.embed(ids)
        if mask is not None:
            h = h + (h * mask[:, :, None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]
        scores = self.out(torch.tanh(h))
        return SimpleNamespace(logits=scores) if self.logits else scores


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.tanh(self.first(a)) + self.second(b)


class TwoCalls(Calls):
    def forward(self, a: Tensor, b: Tensor) -> object:
        return self.function(self, a, b)


class Denoiser(nn.Module):
    """ε of x_t and t, where the noise ε is an input: x_t is made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.time = nn.Linear(3, 3), nn.Linear(1, 3)

    def forward(self, x: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mixed = (1 - t)[:, None] * x + t[:, None] * noise
        return self.layer(mixed) + self.time(t[:, None]), noise


def token_mean(out: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
    """As written in a training script."""
    ce = functional.cross_entropy(out[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100)
    n = (labels[:, 1:] != -100).sum(1)
    return ce.sum(1) / n.clamp_min(1), n


def of_dict(outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
    return targets["scale"] * (outputs - targets["y"]).square().mean(1)


def of_noise(outputs: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    return (outputs[0] - outputs[1]).square().mean(1) + 0 * x.sum(1)


def all_tokens(outputs: Tensor) -> Tensor:
    """torch's own mean, over all tokens that count."""
    return functional.cross_entropy(outputs[:, :-1].reshape(-1, 5), LABELS[:, 1:].reshape(-1))


def each_mean(outputs: Tensor) -> Tensor:
    return torch.stack([functional.cross_entropy(o, y) for o, y in zip(outputs, LABELS, strict=True)]).mean()


X, Y = randn(4, 3), {"y": randn(4, 2, seed=3), "scale": torch.tensor([1.0, 2, 3, 4]).double()}
PAIR = X, randn(4, 2, seed=2)
DIFFUSED = X, torch.tensor([0.1, 0.4, 0.6, 0.9]).double(), randn(4, 3, seed=4)

# module, loss, batch, and the loss of the outputs by hand
CASES: dict[str, tuple[Callable[[], nn.Module], Any, tuple[Any, Any], Callable[[Any], Tensor]]] = {
    "causal_lm": (LanguageModel, "causal_lm", (IDS, LABELS), all_tokens),
    "token mean": (LanguageModel, token_mean, (IDS, LABELS), all_tokens),
    "ids and mask": (LanguageModel, "causal_lm", ({"ids": IDS, "mask": MASK}, LABELS), all_tokens),
    "positions": (LanguageModel, "cross_entropy", ({"mask": MASK, "ids": IDS}, LABELS), each_mean),
    "two inputs": (Two, "mse", (PAIR, Y["y"]), lambda o: (o - Y["y"]).square().mean()),
    "a list": (Two, "mse", (list(PAIR), Y["y"]), lambda o: (o - Y["y"]).square().mean()),
    "dict targets": (Two, of_dict, (PAIR, Y), lambda o: (Y["scale"][:, None] * (o - Y["y"]).square()).mean()),
    "denoiser": (Denoiser, of_noise, (DIFFUSED, X), lambda o: (o[0] - o[1]).square().mean()),
}


def built(kind: str) -> tuple[fgvar.Problem, nn.Module, Any, Callable[[Any], Tensor]]:
    make, loss, batch, by_hand = CASES[kind]
    module = fixed(make())
    return fgvar.Problem(fgvar.with_sites(module), loss, batch), module, batch[0], by_hand


def called(module: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, tuple | list) else module(inputs)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float = 1e-9) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kind", CASES)
def test_loss_and_gradient_are_those_of_autograd(kind: str) -> None:
    problem, module, inputs, by_hand = built(kind)
    loss = by_hand(called(module, inputs))
    gradients = torch.autograd.grad(loss, list(module.parameters()))
    torch.testing.assert_close(problem.loss(), loss.detach())
    assert_close(problem.backprop(), dict(zip(dict(module.named_parameters()), gradients, strict=True)))


@pytest.mark.parametrize("kind", CASES)
def test_parts_of_the_batch_are_parts_of_its_loss(kind: str) -> None:
    """Slices, single examples and vmap over them; the data variance is that of a loop."""
    problem = built(kind)[0]
    n = problem.batch_size
    each = [problem.example(i).backprop() for i in range(n)]
    assert_close({k: torch.stack([g[k] for g in each]).mean(0) for k in each[0]}, problem.backprop())
    assert_close({k: g[1] for k, g in problem.per_example(lambda one: one.backprop()).items()}, each[1])
    some = problem.rows(torch.tensor([2, 0])).backprop()
    assert_close(some, {k: (each[2][k] + each[0][k]) / 2 for k in some})
    flat = torch.stack([torch.cat([g.flatten() for g in one.values()]) for one in each])
    for chunk in (1, 16):
        found = DataVariance(problem, chunk).of(fgvar.scheme("FG-W")).value[1, -1]
        np.testing.assert_allclose(found, float(flat.var(0).sum() / n), rtol=1e-9)


@pytest.mark.parametrize("name", ["FG-W", "FG-A", "independent"])
@pytest.mark.parametrize("kind", ["causal_lm", "ids and mask", "positions", "dict targets", "denoiser"])
def test_unbiased_by_enumeration_and_measured_in_chunks(kind: str, name: str) -> None:
    problem = built(kind)[0]
    estimator = fgvar.scheme("FG-W", shared=False) if name == "independent" else fgvar.scheme(name)
    assert_close(expectation(estimator, problem), problem.backprop())
    one, other = (fgvar.measure({name: estimator}, problem, draws=20, chunk=chunk) for chunk in (1, 16))
    for variable in ("variance", "slope", "data_variance", "loss"):
        np.testing.assert_allclose(one[variable], other[variable], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["causal_lm", "ids and mask", "two inputs"])
def test_the_exact_route_says_d_plus_one(kind: str) -> None:
    """FG-W with Gaussian noise: variance (d + 1)‖g‖², at every batch."""
    problem = built(kind)[0]
    ds = fgvar.measure({"FG-W": fgvar.scheme("FG-W")}, problem, route="exact").sel(layer="total")
    d, g = sum(p.numel() for p in problem.params.values()), problem.backprop()
    assert float(ds["variance"].squeeze()) == pytest.approx(
        (d + 1) * sum(float(v.square().sum()) for v in g.values())
    )


def test_outputs_with_logits_and_classes_at_either_place() -> None:
    plain, holding = (fixed(LanguageModel(logits)) for logits in (False, True))
    problem = fgvar.Problem(plain, "cross_entropy", (IDS, LABELS))
    turned = Calls(lambda m, ids: m.model(ids).movedim(-1, 1), model=plain)
    for module in (holding, turned):
        torch.testing.assert_close(fgvar.Problem(module, "cross_entropy", (IDS, LABELS)).loss(), problem.loss())
    torch.testing.assert_close(
        fgvar.Problem(holding, "causal_lm", (IDS, LABELS)).loss(), built("causal_lm")[0].loss()
    )
    first = Calls(lambda m, ids: SimpleNamespace(logits=m.model(ids)[:, 0]), model=plain)
    assert (
        fgvar.Problem(first, "cross_entropy", (IDS, IDS[:, 0])).correct(SimpleNamespace(logits=torch.eye(3)))
        is not None
    )


def test_an_example_without_a_target() -> None:
    """Of positions 0; of tokens it has no weight."""
    some = torch.where(torch.arange(3)[:, None] == 1, -100, IDS)
    problem = fgvar.Problem(fixed(LanguageModel()), "cross_entropy", (IDS, some))
    assert float(problem.example(1).loss()) == 0
    lm = fgvar.Problem(fixed(LanguageModel()), "causal_lm", (IDS, some))
    torch.testing.assert_close(lm.loss(), lm.at(batch=(IDS[::2], some[::2])).loss())


def test_another_batch_may_have_another_length() -> None:
    problem, module, _, _ = built("ids and mask")
    ids = torch.tensor([[0, 1, 2, 3, 3, 1]])
    other = problem.at(batch=({"ids": ids, "mask": ids > 0}, ids))
    expected = functional.cross_entropy(module(ids, ids > 0)[0, :-1], ids[0, 1:])
    torch.testing.assert_close(other.loss(), expected.detach())


def test_precision_copies_and_names() -> None:
    problem = built("ids and mask")[0].to(torch.float32)
    assert problem.inputs["ids"].dtype == torch.int64
    assert problem.inputs["mask"].dtype == torch.bool
    assert problem.weights.dtype == problem.loss().dtype == torch.float32
    denoiser = built("denoiser")[0].to(torch.float32)
    assert {leaf.dtype for leaf in denoiser.inputs} == {torch.float32}
    other = problem.clone()
    other.inputs["ids"].zero_()
    assert not torch.equal(other.inputs["ids"], problem.inputs["ids"])
    assert {"inputs['ids']", "inputs['mask']", "targets", "weights"} <= problem.tensors().keys()
    assert {"inputs[0]", "inputs[1]", "inputs[2]"} <= denoiser.tensors().keys()


def test_a_probe_leaves_token_ids_alone() -> None:
    ids, labels = moved((IDS, LABELS), torch.device("cpu"), torch.float64)
    assert ids.dtype == labels.dtype == torch.int64
    assert moved((X.float(), LABELS), torch.device("cpu"), torch.float64)[0].dtype == torch.float64


def test_a_network_that_writes_into_one_of_its_inputs_gets_copies() -> None:
    module = TwoCalls(lambda m, a, b: m.layer(a.mul_(2)) + b)
    inputs = tree_map(torch.clone, PAIR)
    fgvar.Problem(module, "mse", (inputs, Y["y"])).loss()
    assert torch.equal(inputs[0], PAIR[0])


SPOILT = PAIR[0], PAIR[1] / torch.tensor([0.0, 1.0]).double()


@pytest.mark.parametrize(
    ("module", "loss", "batch", "error", "message"),
    [
        (Two, "mse", ((X, PAIR[1][:3]), Y["y"]), ValueError, r"inputs\[0\] \(4, 3\) and inputs\[1\] \(3, 2\)"),
        (Two, "mse", ((X, torch.ones(())), Y["y"]), ValueError, r"inputs\[1\] \(\).*nonzero number of examples"),
        (Two, "mse", (SPOILT, Y["y"]), NonFiniteError, r"the batch: inputs\[1\] holds NaN"),
        (Two, "mse", ((X, [1.0] * 4), Y["y"]), TypeError, r"\(inputs\[1\]\[0\] is float\); torch\.as_"),
        (LanguageModel, "causal_lm", ({"ids": IDS, "mask": IDS[:1]}, IDS), ValueError, r"repeated by \.expand"),
        (LanguageModel, "causal_lm", ({"ids": IDS, "mask": None}, IDS), TypeError, r"\['mask'\] is None, .*leave"),
        (Two, "mse", ((), Y["y"]), TypeError, r"batch is tuple of tuple and Tensor, expected a pair"),
        (Two, "mse", (X, Y["y"]), TypeError, r"cannot be called with one tensor.*a tuple module\(\*x\), a dict"),
        (Two, "mse", ((X, X, X), Y["y"]), TypeError, r"inputs that are a tuple of 3 .*too many"),
        (Two, "mse", ({"a": X, "c": X}, Y["y"]), TypeError, r"called with inputs that are a dict of 2 .*missing"),
        (Two, "mse", ((X, PAIR[1].float()), Y["y"]), ValueError, r"inputs\[1\] are torch\.float32.*\[1\]\.to"),
        (Two, "mse", ((X, PAIR[1].to("meta")), Y["y"]), ValueError, r"inputs\[1\] is on meta"),
        (Two, "mse", (PAIR, Y), ValueError, r"mse needs targets .* the targets are dict"),
        (Two, "cross_entropy", (PAIR, Y), ValueError, r"as integers, .* the targets are dict"),
        (LanguageModel, "cross_entropy", (IDS, 2 * LABELS.clamp_min(0)), ValueError, r"range from 0 to 6, "),
        (LanguageModel, "cross_entropy", (IDS, IDS[:, :3]), ValueError, r"\[batch, positions\]; .*\(3, 4, 5\)"),
        (LanguageModel, "causal_lm", (IDS, 2 * IDS), ValueError, r"targets range from 0 to 6, .*5 classes"),
        (LanguageModel, "causal_lm", (IDS, IDS[:, :1]), ValueError, r"two positions .*labels are \(3, 1\)"),
        (LanguageModel, "causal_lm", (IDS, IDS.double()), ValueError, r"token numbers, integers; .*torch\.float64"),
        (LanguageModel, "causal_lm", (IDS, IDS[:, :3]), ValueError, r"classes\]; .*\(3, 4, 5\)"),
        (LanguageModel, "causal_lm", (IDS, 0 * IDS - 100), ValueError, r"weights sum to 0.*all targets ignored"),
    ],
)  # fmt: skip
def test_other_batches_are_refused(
    module: Callable[[], nn.Module], loss: str, batch: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        fgvar.Problem(fixed(module()), loss, batch)


def test_an_axis_that_may_be_either_is_refused() -> None:
    ids = torch.arange(5)[None].expand(2, 5) % 4
    with pytest.raises(ValueError, match=r"cannot tell the axis of classes: .*\(2, 5, 5\) fit targets \(2, 5\)"):
        fgvar.Problem(fixed(LanguageModel()), "cross_entropy", (ids, ids))
    assert fgvar.Problem(fixed(LanguageModel()), "causal_lm", (ids, ids)).loss().isfinite()


def test_noise_of_an_autoencoder_is_an_input() -> None:
    def coder(m: Calls, x: Tensor, noise: Tensor) -> Tensor:
        return m.layer(x + noise)

    drawing = Calls(lambda m, x: coder(m, x, torch.randn_like(x)))
    with pytest.raises(ValueError, match=r"the network draws random numbers.*part of the batch's inputs"):
        fgvar.Problem(drawing, "mse", (X, Y["y"]))
    problem = fgvar.Problem(TwoCalls(coder), "mse", ((X, randn(4, 3, seed=5)), Y["y"]))
    assert_close(expectation(fgvar.scheme("FG-W"), problem), problem.backprop())

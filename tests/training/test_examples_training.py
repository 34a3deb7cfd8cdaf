"""Training on tensors of any structure: steps, curves, probes and checkpoints, with weights of the examples."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from broken_runs import stopped_at
from cases import randn
from refusals import says
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import fgvar
from fgvar.data import Examples
from fgvar.training.train import Run

VOCABULARY, POSITIONS = 7, 5
SCHEDULE = fgvar.Schedule(epochs=2, batch=4, lr=0.1, momentum=0.9)


class Language(nn.Module):
    """Logits of the next token from the one at hand, where a mask lets it pass; the read-out shares its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(VOCABULARY, 6), nn.Linear(6, VOCABULARY, bias=False)
        self.embedding.weight.data = randn(VOCABULARY, 6).float()
        self.out.weight = self.embedding.weight
        self.inner = nn.Linear(6, 6, bias=False)
        self.inner.weight.data = 0.3 * randn(6, 6, seed=1).float()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.out(torch.tanh(self.inner(self.embedding(ids))) * mask[..., None])


def texts(n: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Token ids, with a mask of those that are no padding, and labels, −100 there: of one token, of two, …"""
    ids = torch.randint(VOCABULARY, (n, POSITIONS), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(POSITIONS) <= 1 + torch.arange(n)[:, None] % (POSITIONS - 1)
    return {"ids": ids, "mask": mask}, torch.where(mask, ids, -100)


TEXTS = Examples(*texts(16, seed=0), test=texts(10, seed=1), name="texts")


def token_mean(logits: Tensor, labels: Tensor) -> Tensor:
    """As torch has it: over all tokens of all texts."""
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def of_splits(model: nn.Module) -> list[float]:
    return [token_mean(model(**split.inputs), split.targets).item() for split in (TEXTS, TEXTS.test)]


def trained(scheme: str = "BP", data: object = TEXTS, net: nn.Module | None = None, **words) -> Run:
    words = {"loss": "causal_lm", "device": "cpu"} | words
    return fgvar.train(net or Language(), fgvar.scheme(scheme), data, SCHEDULE, **words)


def test_backprop_of_weighted_losses_equals_a_plain_loop() -> None:
    """torch's token mean, SGD and a learning rate by hand, in float64; curves are means over all tokens."""
    model, seen = Language().double(), []
    run = trained(net=model, seed=3)
    optimiser, step = torch.optim.SGD(model.parameters(), momentum=0.9, weight_decay=1e-4), 0
    means = [of_splits(model)]
    for epoch in range(2):
        for inputs, labels in TEXTS.batches(4, seed=3, epoch=epoch):
            optimiser.zero_grad()
            loss = token_mean(model(**inputs), labels)
            loss.backward()
            seen.append(loss.item())
            optimiser.param_groups[0]["lr"] = 0.1 * (1 - step / 8)
            optimiser.step()
            step += 1
        means.append(of_splits(model))
    for name, p in model.state_dict().items():
        torch.testing.assert_close(run.params[name], p, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(run.dataset["batch_loss"], seen, rtol=1e-10)
    np.testing.assert_allclose(run.dataset["loss"], np.array(means)[:, 0], rtol=1e-9)
    np.testing.assert_allclose(run.dataset["test_loss"], np.array(means)[:, 1], rtol=1e-9)
    np.testing.assert_allclose(run.dataset["train_perplexity"], np.exp(run.dataset["loss"]))
    np.testing.assert_allclose(run.dataset["test_perplexity"], np.exp(run.dataset["test_loss"]))
    assert "test_error" not in run.dataset, "a text is no class"
    assert run.dataset.attrs["data"] == "texts"


def curves(run: Run) -> list[str]:
    return [str(name) for name, values in run.dataset.data_vars.items() if values.dims == ("epoch",)]


def test_the_curves_are_those_that_are_defined() -> None:
    x, net = randn(16, 3).float(), nn.Linear(3, 2)
    classes, numbers = torch.arange(16) % 2, randn(16, 2, seed=1).float()
    both = ["loss", "test_loss"]
    of_classes = Examples(x, classes, test=(x[:5], classes[:5]))
    assert curves(trained(data=of_classes, net=net, loss="cross_entropy")) == [*both, "train_error", "test_error"]
    of_numbers = Examples(x, numbers, test=(x[:5], numbers[:5]))
    assert curves(trained(data=of_numbers, net=net, loss="mse")) == both
    assert curves(trained(data=Examples(x, numbers), net=net, loss="mse")) == ["loss"]
    assert curves(trained(data=Examples(x, classes), net=net, loss="cross_entropy")) == ["loss", "train_error"]
    assert curves(trained()) == [*both, "train_perplexity", "test_perplexity"]


def test_no_more_examples_are_evaluated_at_once_than_an_update_has() -> None:
    class Narrow(Language):
        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            assert len(ids) <= SCHEDULE.batch, "a language model's outputs would outgrow memory"
            return super().forward(ids, mask)

    xr.testing.assert_equal(trained(net=Narrow()).dataset, trained().dataset)


def test_a_pair_of_examples_is_examples_with_a_test_set() -> None:
    train, test = Examples(*texts(16, seed=0), name="texts"), Examples(*texts(10, seed=1))
    xr.testing.assert_identical(trained(data=(train, test)).dataset, trained().dataset)
    with pytest.raises(ValueError, match="expected the structure of the data"):
        trained(data=(train, Examples(*texts(10, seed=1)[::-1])))


def test_class_weights_of_an_own_loss_are_those_of_the_whole_split() -> None:
    """Of a rare class that weighs much: no batch has the share of it that the split has."""
    x, y, weight = randn(22, 3).float(), (torch.arange(22) > 18).long(), torch.tensor([1.0, 9.0])
    net = nn.Linear(3, 2)

    def loss(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return functional.cross_entropy(outputs, targets, reduction="none"), weight[targets]

    run = trained(data=Examples(x, y), net=net, loss=loss)
    net.load_state_dict(run.params)
    assert float(run.dataset["loss"][-1]) == pytest.approx(functional.cross_entropy(net(x), y, weight).item())
    assert float(run.dataset["train_error"][-1]) == float((net(x).argmax(1) != y).double().mean())


def test_a_batch_without_a_token_moves_nothing_and_a_split_without_one_is_refused() -> None:
    (inputs, labels), schedule = texts(4, seed=0), fgvar.Schedule(1, 1, momentum=0, decay="constant", weight_decay=0)
    few = torch.where(torch.arange(4)[:, None] == 2, -100, labels)
    net, words = Language(), {"loss": "causal_lm", "seed": 1, "device": "cpu"}
    losses = fgvar.train(net, fgvar.scheme("FG-W"), Examples(inputs, few), schedule, **words).dataset["batch_loss"]
    assert int((losses == 0).sum()) == 1
    with pytest.raises(ValueError, match=says("weights sum to 0", "are all targets ignored", "Give some that count")):
        trained(data=Examples(inputs, labels, test=(inputs, torch.full_like(labels, -100))))


@pytest.mark.parametrize("loss", ["cross_entropy", fgvar.contrastive.InfoNCE()])
def test_images_as_tensors_are_trained_as_images_are(loss: object) -> None:
    """Bit by bit: order, noise, views and curves are the same."""
    digits = fgvar.data.load("digits").subset(range(32)), fgvar.data.load("digits", "test").subset(range(16))
    same = Examples(*digits[0].batch(range(32)), test=digits[1].batch(range(16)), name="digits")
    net = fgvar.networks.LocalMixer((1, 8, 8), 10, blocks=1, patches=2, channels=8, groups=2, seed=1)
    views = fgvar.data.Views(flip=0.0) if isinstance(loss, fgvar.contrastive.InfoNCE) else None
    one, two = (trained("LG-FG-A", data, net, loss=loss, views=views) for data in (digits, same))
    assert all(torch.equal(value, two.params[name]) for name, value in one.params.items())
    xr.testing.assert_allclose(one.dataset, two.dataset, rtol=1e-6)


class Classifier(nn.Module):
    """Classes of texts, by the mean of their tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden, self.out = nn.Embedding(VOCABULARY, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        for seed, p in enumerate(self.parameters()):
            p.data = randn(*p.shape, seed=seed).float()
        self.embedding.weight.requires_grad_(False)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        rows = (self.embedding(ids) * mask[..., None]).mean(1)
        return self.out(torch.tanh(self.hidden(rows)))


@pytest.mark.parametrize("scheme", ["LG-FG-A", "LG-FG-W", "L-BP"])
def test_local_losses_train_on_texts(scheme: str) -> None:
    inputs = texts(16, seed=0)[0]
    data = Examples(inputs, inputs["ids"][:, 0] % 3)
    net = fgvar.with_local_heads(fgvar.with_sites(Classifier()), after=["hidden"], classes=3)
    run = trained(scheme, data, net, loss="cross_entropy")
    assert torch.equal(run.params["embedding.weight"], net.state_dict()["embedding.weight"])
    assert not torch.equal(run.params["hidden.weight"], net.state_dict()["hidden.weight"])
    assert np.isfinite(run.dataset["loss"]).all()


@pytest.mark.parametrize("scheme", ["FG-W", "MeZO"])
def test_probes_leave_token_ids_alone_and_change_nothing(scheme: str) -> None:
    probe = fgvar.Probe({"FG-W": fgvar.scheme("FG-W")}, texts(4, seed=2), (0, 3), draws=4)
    run, plain = trained(scheme, probe=probe), trained(scheme)
    assert all(torch.equal(value, plain.params[name]) for name, value in run.params.items())
    assert run.dataset["variance"].sizes["step"] == 2
    measured = fgvar.measure(
        {"FG-W": fgvar.scheme("FG-W")}, fgvar.Problem(Language(), "causal_lm", texts(4, seed=2)), draws=4
    )
    np.testing.assert_allclose(run.dataset["variance"].isel(step=0), measured["variance"])


def test_autocast_leaves_token_ids_alone() -> None:
    found = trained("FG-W", autocast=True).dataset["loss"]
    np.testing.assert_allclose(found, trained("FG-W").dataset["loss"], rtol=0.05)


def test_it_goes_on_with_the_same_bits_and_knows_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = fgvar.Probe({"FG-W": fgvar.scheme("FG-W")}, texts(4, seed=2), (2, 7), draws=4)
    words = {"scheme": "FG-W", "checkpoint": tmp_path / "run.checkpoint", "probe": probe}
    stopped_at(6, monkeypatch, lambda: trained(**words))
    run, whole = trained(**words), trained("FG-W", probe=probe)
    assert all(torch.equal(value, whole.params[name]) for name, value in run.params.items())
    xr.testing.assert_equal(*(each.dataset.drop_vars("seconds", errors="ignore") for each in (run, whole)))
    (inputs, labels), (test, test_labels) = texts(16, seed=0), texts(10, seed=1)
    other = {**inputs, "ids": inputs["ids"].flip(0)}
    for data, what in (
        (Examples(other, labels, test=TEXTS.test, name="texts"), "its train is texts, 16 examples, "),
        (Examples(inputs, labels, test=(test, test_labels.flip(0)), name="texts"), r"its test is texts \(test\), 10"),
        (Examples(inputs, labels, name="texts"), "its test is .*, this run's is None"),
    ):
        with pytest.raises(ValueError, match=f"is the checkpoint of another run: {what}"):
            trained(**words, data=data)
    with pytest.raises(ValueError, match="is the checkpoint of another run: its probe"):
        trained(**words | {"probe": fgvar.Probe(probe.estimators, texts(4, seed=3), (2, 7), draws=4)})


def test_features_of_any_inputs_are_read_out() -> None:
    """By a linear classifier of the class of a text's first token, which an embedding tells."""

    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY, 8)
            self.embedding.weight.data = randn(VOCABULARY, 8).float()

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            return self.embedding(ids)[:, 0] * mask[:, :1]

    inputs = texts(64, seed=0)[0]
    net, data = Features(), Examples(inputs, inputs["ids"][:, 0], name="texts")
    run = fgvar.read_out(net, dict(net.named_parameters()), data, fgvar.Schedule(30, 16), device="cpu")
    assert float(run.dataset["train_error"][-1]) == 0
    assert run.params["linear.weight"].shape == (VOCABULARY, 8)
    with pytest.raises(ValueError, match=r"texts: targets are torch\.int64 \[n, …\], expected class numbers"):
        fgvar.read_out(net, dict(net.named_parameters()), TEXTS, device="cpu")


@pytest.mark.parametrize(
    "data",
    [
        DataLoader(TensorDataset(torch.zeros(4, 2), torch.zeros(4, 2))),
        (DataLoader([(torch.zeros(2), 0)]), DataLoader([(torch.zeros(2), 0)])),
    ],
)
def test_loaders_are_refused(data: object) -> None:
    with pytest.raises(TypeError, match=r"got a DataLoader, expected data: give its dataset, fgvar\.data\.Examples"):
        trained(data=data)


def test_what_is_no_data_is_refused() -> None:
    message = r"data is (\w+)( of Tensor, Tensor)?, expected fgvar\.data\.Examples\(inputs, targets, test=…\)"
    for data in ((torch.zeros(4, 2), torch.zeros(4, 2)), TensorDataset(torch.zeros(4, 2)), None):
        with pytest.raises(TypeError, match=message):
            trained(data=data)
    with pytest.raises(TypeError, match=r"images are dict, expected one tensor \[batch, channels, height, width\]"):
        trained(loss=fgvar.contrastive.InfoNCE(), views=fgvar.data.Views())

"""Agreement with the authors' published algorithm, number by number.

Another export of the same form: FGVAR_REFERENCE=other.npz .venv/bin/python -m pytest tests/networks/test_reference.py
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import fgvar
from fgvar.testing import expectation

PATH = Path(os.environ.get("FGVAR_REFERENCE", Path(__file__).with_name("localmixer_tiny.npz")))
TOLERANCE = 1e-10
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)

METHODS = {
    "backprop": "BP",
    "local_backprop": "L-BP",
    "local_stopgrad_backprop": "LG-BP",
    "forward_grad_activations": "LG-FG-A",
    "forward_grad_weights": "LG-FG-W",
    "global_forward_grad_activations": "FG-A",
    "global_forward_grad_weights": "FG-W",
}
PERTURBING = [tag for tag, name in METHODS.items() if "FG" in name]


class Reference:
    """The stored arrays, and the problem that they describe; all sizes are read from their shapes."""

    def __init__(self, path: Path) -> None:
        self.arrays = dict(np.load(path))
        self.blocks = sum(key.startswith("local_loss_") for key in self.arrays)
        self.batch, height, width, colours = self["image"].shape
        _, tokens, self.groups = self["local_loss_0"].shape
        parameters = sum(key.startswith("param_") and key.endswith("_w") for key in self.arrays)
        model = fgvar.networks.LocalMixer(
            (colours, height, width),
            self[f"param_{parameters - 1}_w"].shape[1],
            blocks=self.blocks,
            patches=round(tokens**0.5),
            channels=self["param_0_w"].shape[1],
            groups=self.groups,
        ).double()
        trunk = [(0, "channel"), (0, "grouped")]
        trunk += [(block, kind) for block in range(1, self.blocks) for kind in ("token", "channel", "grouped")]
        self.layers = [f"block{block}.{kind}" for block, kind in trunk]
        self.sites = [f"{layer}_site" for layer in self.layers]
        self.names = self.layers + [f"block{block}.head.linear" for block in range(self.blocks)] + ["readout.linear"]
        model.load_state_dict({key: value.clone() for key, value in self.parameters("param").items()})
        mean, std = (torch.tensor(c, dtype=torch.float64) for c in (MEAN, STD))
        pixels = (self["image"] - mean) / std
        images = pixels.permute(0, 3, 1, 2).contiguous()
        self.problem = fgvar.Problem(model, "cross_entropy", (images, self["label"]))

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.arrays[key]))

    def parameters(self, prefix: str, count: int | None = None) -> dict[str, torch.Tensor]:
        """Stored [in, out] arrays under our names and in our [out, in] layout."""
        found = {}
        for index, name in enumerate(self.names[:count]):
            found[f"{name}.weight"] = self[f"{prefix}_{index}_w"].transpose(-1, -2)
            found[f"{name}.bias"] = self[f"{prefix}_{index}_b"]
        return found

    def noise(self, name: str) -> dict[str, torch.Tensor]:
        if name.endswith("W"):
            return self.parameters("weight_noise", len(self.layers))
        found = {}
        for index, site in enumerate(self.sites):
            u = self[f"act_noise_{index}"]
            found[site] = u.transpose(1, 2) if "token" in site else u
        return found


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(PATH)


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")


def scheme(name: str) -> fgvar.Estimator:
    return fgvar.scheme(name, credit="published" if name == "LG-FG-W" else None)


def undivided(reference: Reference, name: str, gradient: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The published global FG-A is not divided by the batch size (its heads' exact gradients are)."""
    if name != "FG-A":
        return gradient
    perturbed = reference.problem.perturbed
    return {key: g * reference.batch if key in perturbed else g for key, g in gradient.items()}


@pytest.mark.parametrize("tag", METHODS)
def test_gradients_of_the_seven_methods(reference: Reference, tag: str) -> None:
    name = METHODS[tag]
    estimator = scheme(name)
    noise = reference.noise(name) if tag in PERTURBING else {}
    gradient = estimator.estimate(reference.problem, noise).gradient
    assert all(gradient[name].abs().max() > 1e-3 for name in ("block0.channel.weight", "readout.linear.weight"))
    assert_close(undivided(reference, name, gradient), reference.parameters(f"grad_{tag}"))


@pytest.mark.parametrize("tag", PERTURBING)
def test_enumerated_means_equal_the_stored_means(reference: Reference, tag: str) -> None:
    name = METHODS[tag]
    mean = undivided(reference, name, expectation(scheme(name), reference.problem))
    assert_close(mean, reference.parameters(f"mean_{tag}", len(reference.layers)))


def test_activations(reference: Reference) -> None:
    problem, groups = reference.problem, reference.groups
    names = {}
    for block in range(reference.blocks):
        kinds = ["channel", "grouped"] if block == 0 else ["token", "channel", "grouped"]
        for index, kind in enumerate(kinds):
            names[f"state_block_{block}.prenorm_{index}"] = f"block{block}.{kind}"
            names[f"state_block_{block}.post_{index}"] = f"block{block}.{kind}_relu"
    watched = [*names.values(), "readout.linear", *(f"{end}" for end in problem.trace.ends)]
    outputs, values = problem.run(problem.params, watch=watched)
    for key, name in names.items():
        value, expected = values[name], reference[key]
        # Ours returns tokens first after the token layer's ReLU.
        value = value.transpose(1, 2) if name.endswith("token_relu") else value
        torch.testing.assert_close(value.reshape(expected.shape), expected, rtol=0, atol=TOLERANCE)
    for block, end in enumerate(problem.trace.ends):
        features = values[end]
        normed = torch.nn.functional.layer_norm(features, features.shape[-1:], eps=1e-5)
        expected = reference[f"state_block_{block}.pre_pred"]
        torch.testing.assert_close(normed, expected, rtol=0, atol=TOLERANCE)
        assert features.shape[2] == groups
    torch.testing.assert_close(outputs, reference["state_pred_final"], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(problem.loss(), reference["final_loss"], rtol=0, atol=TOLERANCE)


def test_loss_copies(reference: Reference) -> None:
    """Every (patch, group) copy has the value of the ordinary loss; stored divided by the batch size."""
    problem = reference.problem
    _, values = problem.run(problem.params, watch=tuple(problem.trace.ends))
    for block, end in enumerate(problem.trace.ends):
        copies = reference[f"local_loss_{block}"]
        ours = problem.local_losses(problem.params, end, values[end]) / reference.batch
        torch.testing.assert_close(ours[:, None, None].expand(copies.shape), copies, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["act", "weight"])
def test_directional_derivatives_of_the_copies(reference: Reference, kind: str) -> None:
    estimator = scheme("LG-FG-A" if kind == "act" else "LG-FG-W")
    noise = reference.noise("A" if kind == "act" else "W")
    linearised = estimator.space.linearise(reference.problem, estimator.losses)
    values, tangents = fgvar.Jvp()(linearised.forward_terms, linearised.point, linearised.direction(noise))
    terms = estimator.losses.terms(reference.problem, values, tangents)
    for block, end in enumerate(reference.problem.trace.ends):
        expected = reference[f"jvp_{kind}_{block}"]
        torch.testing.assert_close(terms[end] / reference.batch, expected, rtol=0, atol=TOLERANCE)


def test_published_credit_is_biased_in_channel_layers_only(reference: Reference) -> None:
    """The layer norm after a channel layer couples the groups, but each group's loss credits its own rows."""
    stored = reference.parameters("mean_forward_grad_weights", len(reference.layers))
    target = reference.parameters("grad_local_stopgrad_backprop", len(reference.layers))
    bias = {}
    for layer in reference.layers:
        pairs = [(stored[f"{layer}.{kind}"], target[f"{layer}.{kind}"]) for kind in ("weight", "bias")]
        difference = sum(float((mean - goal).square().sum()) for mean, goal in pairs) ** 0.5
        bias[layer] = difference / sum(float(goal.square().sum()) for _, goal in pairs) ** 0.5
    channel = {layer: value for layer, value in bias.items() if layer.endswith("channel")}
    assert all(value < TOLERANCE for layer, value in bias.items() if layer not in channel)
    stored_here = PATH.name == "localmixer_tiny.npz"
    low, high = (0.05, 0.16) if stored_here else (1e-3 if reference.groups > 1 else 0, float("inf"))
    assert all(low <= value < high for value in channel.values()), channel


def test_default_credit_is_unbiased(reference: Reference) -> None:
    estimator = fgvar.scheme("LG-FG-W")
    target = estimator.target(reference.problem)
    assert_close(expectation(estimator, reference.problem), target)
    assert_close(target, reference.parameters("grad_local_stopgrad_backprop"))

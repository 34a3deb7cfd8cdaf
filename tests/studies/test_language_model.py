"""The study of a language model: its sets and texts, what theory says, its stored evidence and its figure."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import fgvar
from fgvar.plot import looks
from figures import language_model as figure
from studies import language_model as study
from studies import language_network as networks

STORED = Path(__file__).parents[2] / "figures/data/language_model.nc"
TINY = networks.Base(width=8, depth=2, positions=4, pretraining=4, batch=2, lr=1e-3, seed=0)


@pytest.fixture(scope="module")
def stored() -> xr.Dataset:
    return fgvar.open_dataset(STORED)


# ---- what is trained ------------------------------------------------------------------------------------------


@pytest.mark.hf
@pytest.mark.parametrize(
    ("trainable", "expected"),
    [
        ("full", {"transformer.wte", "transformer.wpe", "transformer.ln_f"} | {f"transformer.h.{i}" for i in (0, 1)}),
        ("last block", {"transformer.h.1"}),
        (
            "LoRA 2",
            {f"base_model.model.transformer.h.{i}.attn.c_attn.lora_{which}" for i in (0, 1) for which in "AB"},
        ),
    ],
)
def test_a_set_requires_a_gradient_and_computes_the_same_function(trainable: str, expected: set[str]) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers", reason="needs the extra fgvar[hf]")
    net = networks.gpt2(TINY)
    part = networks.trained_in_part(net, TINY, trainable)
    trained = {name for name, p in part.named_parameters() if p.requires_grad}
    assert all(any(name.startswith(f"{one}.") for one in expected) for name in trained)
    assert all(any(name.startswith(f"{one}.") for name in trained) for one in expected)
    ids = torch.arange(8).reshape(2, 4)
    torch.testing.assert_close(part(ids).logits, net(ids).logits)
    state = torch.random.get_rng_state()
    networks.trained_in_part(networks.gpt2(TINY), TINY, trainable)
    assert torch.equal(torch.random.get_rng_state(), state), "the global state stays"


@pytest.mark.hf
def test_each_layer_alone_by_closed_forms() -> None:
    """A Conv1D's transpose computes the same; ρ and exact variances keep (qρ + 1)/(qp + 1); tied weights have ρ."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers", reason="needs the extra fgvar[hf]")
    net, ids = networks.gpt2(TINY), torch.arange(8).reshape(2, 4)
    other = networks.with_linear(networks.gpt2(TINY), "transformer.h.0.mlp.c_fc")
    assert isinstance(other.get_submodule("transformer.h.0.mlp.c_fc"), torch.nn.Linear)
    torch.testing.assert_close(other(ids).logits, net(ids).logits)
    found = study.one_by_one(net, net.state_dict(), (ids, ids))
    assert found.sizes["linear"] == 2 * 6 + 2
    assert [str(name) for name in found["linear"].values[found["variance_ratio"].isnull()]] == ["wte"]
    q = {"c_attn": 24, "c_fc": 32, "c_proj": 8}  # outputs
    for name in (str(name) for name in found["linear"].values if str(name).split(".")[-1] in q):
        one, fan_out = found.sel(linear=name), q[name.split(".")[-1]]
        expected = (fan_out * one["ratio"] + 1) / (fan_out * one["fan_in"] + 1)
        assert one["variance_ratio"].item() == pytest.approx(expected.item(), rel=1e-3), name


@pytest.mark.hf
def test_a_network_is_pretrained_once_for_all_cells(tmp_path: Path, monkeypatch) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers", reason="needs the extra fgvar[hf]")
    first = networks.with_heads.__wrapped__(TINY, tmp_path)
    start = networks.gpt2(TINY).get_parameter("transformer.wte.weight")
    assert not torch.equal(first.get_parameter("transformer.wte.weight"), start), "it has learned"
    networks.pretrained.cache_clear()
    monkeypatch.setattr(fgvar, "train", lambda *_, **__: pytest.fail("trained again"))
    for name, value in networks.with_heads.__wrapped__(TINY, tmp_path).state_dict().items():
        assert torch.equal(value, first.state_dict()[name]), name


@pytest.mark.parametrize(("trainable", "rank"), [("LoRA 16", 16), ("LoRA 0", 0), ("LoRA", 0), ("full", 0)])
def test_ranks(trainable: str, rank: int) -> None:
    assert networks.rank_of(trainable) == rank


def test_windows_are_trained_on_or_tested_on() -> None:
    text = np.arange(4 * 300, dtype=np.uint16).view(np.uint8).tobytes()
    data = networks.examples(text, 8, 40, seed=1)
    train, test = ({tuple(row) for row in part.tolist()} for part in (data.inputs, data.test.inputs))
    assert (len(train), len(test)) == (40, networks.TESTED)
    assert not train & test
    assert (data.inputs == data.targets).all()
    with pytest.raises(ValueError, match=r"50 examples of 8 bytes asked for, 44 are there"):
        networks.examples(text, 8, 50, seed=1)


def test_texts_are_the_librarys_own() -> None:
    assert b"def randperm" not in networks.sources(), "what is installed beside it is left out"
    assert b"class Fraction" in networks.sources()
    assert b'The "if" statement' in networks.help_topics()
    assert len(networks.origin()["sources_sha256"]) == 64


# ---- what theory says -----------------------------------------------------------------------------------------


def test_relative_variance_of_rank_one_is_exact() -> None:
    """By quadrature: three nodes for each of six normal numbers integrate ĝ², of degree four in each, exactly."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    w, b = np.array([[1.0, -2.0], [0.5, 3.0]]), np.array([0.7, -1.1])
    square = (w**2).sum() + (b**2).sum()
    second = 0.0
    for at in itertools.product(range(3), repeat=6):
        x = nodes[list(at)]
        u, v = np.outer(x[:2], x[2:4]), x[4:]
        second += weights[list(at)].prod() * ((w * u).sum() + b @ v) ** 2 * ((u**2).sum() + v @ v)
    exact = second / (2 * np.pi) ** 3 / square - 1
    norms = np.sqrt([(w**2).sum(), (b**2).sum(), np.nan])[:, None, None] * np.ones((3, 4, 2))
    measured = xr.Dataset(
        {"gradient_norm": (("layer", "estimator", "reference"), norms), "size": ("layer", [4, 2, 6])},
        coords={
            "layer": ["weight", "bias", "perturbed"], "estimator": ["FG-W", "EGGROLL", "MeZO", "FG-A"],
            "reference": ["target", "backprop"],
        },
    )  # fmt: skip
    found = study.predicted(measured, {"weight": (2, 2), "bias": (2,)})
    assert found.sel(estimator="EGGROLL").item() == pytest.approx(exact, rel=1e-12)
    assert found.sel(estimator=["FG-W", "MeZO"]).values == pytest.approx(7)
    assert np.isnan(found.sel(estimator="FG-A"))


def test_the_stored_runs_keep_the_claims(stored: xr.Dataset) -> None:
    """Drawn values within a third of what theory says: 128 draws have a standard error of 12.5 %."""
    assert not stored.attrs["commit"].endswith("+"), "made from a clean commit"
    assert stored.attrs["text"].startswith("Python 3.")
    assert len(stored.attrs["help_topics_sha256"]) == 64
    assert STORED.stat().st_size < 1e6
    assert (stored["status"] == "done").all()
    ours, size = stored.sel(estimator=["FG-W", "MeZO"]), stored["size"]
    np.testing.assert_allclose(ours["predicted"], (size + 1).broadcast_like(ours["predicted"]), rtol=1e-9)
    np.testing.assert_allclose(ours["relative_variance"] / ours["predicted"], 1, atol=1 / 3)
    np.testing.assert_allclose(ours["cosine"].sel(reference="backprop") * (np.pi / 2 * size) ** 0.5, 1, atol=1 / 3)
    pair = [stored["relative_variance"].sel(estimator=name) for name in ("FG-W", "MeZO")]
    np.testing.assert_allclose(*pair, rtol=0.02, err_msg="of the same noise, a step of 10⁻³ in float32")
    last = stored["relative_variance"].sel(trainable="last block")
    np.testing.assert_allclose(last.sel(estimator="LG-FG-A"), last.sel(estimator="FG-A"), rtol=1e-4)
    same, count = figure.agreement(figure.PAGE.prepared(stored))
    assert same == count > 40, "ρ decides, whatever the layer"
    perplexity = stored["test_perplexity"]
    assert (perplexity.isel(epoch=-1) < perplexity.isel(epoch=0)).all(), "every set learns"


# ---- the figure -----------------------------------------------------------------------------------------------


def made() -> xr.Dataset:
    """A dataset of two sets: FG-A ten times as noisy as FG-W, costs of 3 and 2, and layers of which one disagrees."""
    sets, schemes = ["full", "LoRA 1"], ["FG-W", "FG-A"]
    d = np.array([3e6, 3e3])
    dims = {"trainable": sets, "seed": [0], "stage": list(study.STAGES), "estimator": schemes}
    variance = np.ones((2, 1, 3, 2)) * d[:, None, None, None] * [1, 10]
    cosine = np.sqrt(2 / np.pi / variance)[..., None] * np.ones(2)
    layers = {
        "ratio": [[1, 400], [64, np.nan]], "fan_in": [[64, 64], [64, 64]],
        "variance_ratio": [[0.1, 6], [0.9, np.nan]],
    }  # fmt: skip
    found = xr.Dataset(
        {
            "relative_variance": (tuple(dims), variance), "predicted": (tuple(dims), variance * [1.05, np.nan]),
            "cosine": ((*dims, "reference"), cosine),
            "gradient_norm": ((*dims, "reference"), cosine * 0 + np.reshape([2, 1], (2, 1, 1, 1, 1))),
            "cost": (tuple(dims), np.broadcast_to(np.reshape([3, 2], (2, 1, 1, 1)), variance.shape)),
            "size": (("trainable", "seed", "stage"), np.ones((2, 1, 3)) * d[:, None, None]),
            "test_perplexity": (("trainable", "seed", "epoch"), np.ones((2, 1, 2)) * [12, 9]),
            **{
                name: (("trainable", "seed", "end", "linear"), np.repeat(np.reshape(values, (2, 1, 1, 2)), 2, axis=2))
                for name, values in layers.items()
            },
        },
        coords={**dims, "reference": ["target", "backprop"], "epoch": [0, 1], "end": ["before", "after"],
                "linear": ["h.0.attn.c_attn", "h.0.mlp.c_fc"]},
        attrs={"draws": 64, "batch_size": 4, "text": "Python 3.11's own"},
    )  # fmt: skip
    for name in ("relative_variance", "cosine"):
        found[f"{name}_low"], found[f"{name}_high"] = found[name] / 1.1, found[name] * 1.1
    return found


def test_gains_are_at_equal_cost_with_intervals() -> None:
    """Half-widths of two logarithms, 0.0953 each, add up as those of independent values do."""
    data, at = figure.PAGE.prepared(made()), {"trainable": "LoRA 1", "estimator": "FG-A", "stage": "before"}
    value, low, high = figure.gain(data, at)
    assert value == pytest.approx(1000 * 3 / 2)
    assert (low, high) == pytest.approx((value / 1.1**2**0.5, value * 1.1**2**0.5))
    cosine, ends = figure.cosine_of_passes(data.sel(at))
    assert cosine.item() == pytest.approx((1 + 3e4 * 2 / figure.PASSES) ** -0.5)
    assert [end.item() for end in ends] == pytest.approx([(1 + 60 * 1.1) ** -0.5, (1 + 60 / 1.1) ** -0.5])


def test_shares_and_counts() -> None:
    data = figure.PAGE.prepared(made())
    assert figure.share(data, "LoRA 1") == pytest.approx(0.25)
    at = {"trainable": "LoRA 1", "estimator": "FG-W", "stage": "before"}
    assert figure.progress(data, at) == pytest.approx(0.25 * (1 + 3e3 * 3) / (1 + 3 * 2))
    assert figure.within(data, "FG-W") == (6, 6)
    assert figure.within(data, "FG-W", "cosine") == (6, 6)
    assert figure.within(data, "FG-A") == (0, 0), "of which theory says nothing here"
    assert figure.agreement(data) == (4, 6), "one pair has ρ = fan-in and the smaller variance"


def test_what_is_drawn() -> None:
    drawn = figure.draw(made())
    left, middle, right = drawn.axes
    assert [text.get_text() for text in left.get_xticklabels()] == ["full", "LoRA\n1"]
    markers = [looks.look(name).marker for name in ("FG-W", "FG-A")]
    for axes, name in ((left, "relative variance / d"), (middle, "cosine of 1000 passes' mean")):
        assert axes.get_ylabel() == name
        assert [sum(line.get_marker() == one for line in axes.lines) for one in markers] == [3, 3]
    theory = [
        line.get_ydata()[0] for line in middle.lines if len(line.get_ydata()) == 2 and line.get_marker() == "None"
    ]
    assert theory[-2:] == pytest.approx([(1 + (d + 1) * 0.003) ** -0.5 for d in (3e6, 3e3)])
    assert right.get_xlabel() == "ρ / fan-in, one layer alone"


def test_the_caption_answers_the_questions() -> None:
    text = figure.caption(made())
    for words in (
        "FG-A: LoRA 1 1.5e+03 [1.31e+03, 1.72e+03]", "LoRA 1 0.128 [0.122, 0.134]", "full 12.00 → 9.00",
        "LoRA 1 0.25 (3.2e+02)", "FG-W 6 of 6 values", "estimate in that of FG-W 6 of 6", "In 4 of 6 cases",
        "c_attn 4 of 4, c_fc 0 of 2", "LoRA 1 10, 10, 10",
    ):  # fmt: skip
        assert words in text

"""Strips: small parameters side by side and pieces of a large one hold what each holds alone."""

import pytest
import torch

import fgvar
from fgvar.measurement import moments, references, strips
from fgvar.measurement.budget import LARGEST_CHUNK, LARGEST_SMALL_CHUNK, default_chunk
from fgvar.measurement.references import References
from fgvar.measurement.stacks import Dense

SIZES = {"scalar": (), "bias": (10,), "row": (16,), "weight": (7, 11), "none": (0, 3), "large": (100,)}


def values() -> dict[str, torch.Tensor]:
    return {name: torch.randn(shape) for name, shape in SIZES.items()}


def found_of(draws: int, blocks: tuple[int, ...]) -> tuple[moments.Moments, References, dict, list[moments.Block]]:
    """Moments of so many draws that come in stacks of these, what they are about, the draws, and their blocks."""
    torch.manual_seed(0)
    target, backprop = values(), values()
    of = References.of(target, backprop, tuple(target))
    rows = {name: torch.randn(draws, *shape) for name, shape in SIZES.items()}
    total, made, start = moments.init(of), [], 0
    for size in blocks:
        stack = Dense({name: each[start : start + size] for name, each in rows.items()})
        total, some, _ = moments.update(total, of, stack)
        made, start = [*made, *some], start + size
    return total, of, rows, made


@pytest.mark.parametrize("piece", [16, 64, 1 << 14])
def test_grams_and_projections_are_those_of_each_parameter(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (references, strips):
        monkeypatch.setattr(module, "PIECE", piece)
    total, of, rows, made = found_of(52, (48, 4))
    gram = torch.cat([one.gram for one in made[:1]])
    for layer, name in enumerate(SIZES):
        deviations = rows[name].reshape(len(rows[name]), of.target[name].numel()).double() - of.target[name].double()
        torch.testing.assert_close(total.deviation[name], deviations.sum(0))
        for block in range(3):
            own = deviations[16 * block : 16 * block + 16]
            mean = deviations[: 16 * block].sum(0) / max(16 * block, 1)
            frame = torch.stack([*own, mean, of.target[name].double(), of.backprop[name].double()])
            torch.testing.assert_close(gram[block, layer], frame @ frame.T)
            torch.testing.assert_close(made[0].projected[block, layer], of.projected(name, own))


def test_no_bit_depends_on_how_many_blocks_come_together() -> None:
    one, other = (found_of(64, blocks)[0] for blocks in ((64,), (16, 32, 16)))
    assert all(torch.equal(value, other.deviation[name]) for name, value in one.deviation.items())
    torch.testing.assert_close(one.sums, other.sums, rtol=1e-13, atol=0)


def test_batches_hold_every_parameter_once_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "PIECE", 64)
    found = [*found_of(16, (16,))[1].batches()]
    assert found == [("scalar", "bias", "row"), ("weight",), ("none",), ("large",)]


@pytest.mark.parametrize(("width", "chunk"), [(8, LARGEST_SMALL_CHUNK), (64, 144), (256, LARGEST_CHUNK)])
def test_small_draws_come_in_larger_chunks(width: int, chunk: int) -> None:
    """Of a batch of 64 by layers 64-W-W-10; a budget that holds fewer is kept to."""
    layers = [torch.nn.Linear(64, width), torch.nn.ReLU(), torch.nn.Linear(width, width), torch.nn.ReLU()]
    net = torch.nn.Sequential(*layers, torch.nn.Linear(width, 10))
    problem = fgvar.Problem(net, "cross_entropy", (torch.randn(64, 64), torch.zeros(64, dtype=torch.long)))
    estimator = fgvar.scheme("FG-W")
    randomness = estimator.randomness(problem)
    assert default_chunk(estimator, problem, randomness, 1 << 30) == chunk
    assert default_chunk(estimator, problem, randomness, 1 << 21) < chunk

"""ForwardTrace: the order of sites and ends, and which ends each module reaches."""

import pytest
import torch
from cases import mixer, randn
from plain_nets import Across, plain, problem_of
from torch import Tensor
from torch.func import jvp

import fgvar
from fgvar.nn.reach import OUTPUT

ENDS = ("block0.head.end", "block1.head.end", "block2.head.end")


@pytest.fixture(scope="module")
def three_blocks() -> fgvar.Problem:
    return mixer(blocks=3, channels=6)


def test_map_lists_sites_and_ends_in_the_order_of_their_calls(three_blocks: fgvar.Problem) -> None:
    found = three_blocks.trace
    kinds = [("channel", "grouped")] + 2 * [("token", "channel", "grouped")]
    assert list(found.sites) == [f"block{b}.{kind}_site" for b in range(3) for kind in kinds[b]]
    assert found.sites["block1.token_site"] == found.sites["block1.channel_site"] == (2, 4, 6)
    assert found.sites["block1.grouped_site"] == (2, 4, 2, 3)
    assert found.ends == {end: end.removesuffix(".end") for end in ENDS}
    assert found.batch_size == 2


@pytest.mark.parametrize(
    ("name", "cuts", "ends", "own"),
    [
        # no stop: every later end
        ("block0.grouped_site", (), (*ENDS, OUTPUT), ENDS[0]),
        ("block1.token_site", (), (*ENDS[1:], OUTPUT), ENDS[1]),
        ("block2.channel", (), (ENDS[2], OUTPUT), ENDS[2]),
        # stops between the blocks, and before the read-out: the own end alone
        ("block0.channel", ENDS, ENDS[:1], ENDS[0]),
        ("block1.token_site", ENDS, ENDS[1:2], ENDS[1]),
        ("block2.grouped_site", ENDS, ENDS[2:], ENDS[2]),
        # only the last block's: all ends, but not the read-out
        ("block0.channel_site", ENDS[-1:], ENDS, ENDS[0]),
        ("block1.grouped", ENDS[-1:], ENDS[1:], ENDS[1]),
        # a stop behind does not matter
        ("block2.token", ENDS[:1], (ENDS[2], OUTPUT), ENDS[2]),
        # after all ends there is the output
        ("readout", ENDS, (OUTPUT,), OUTPUT),
        ("readout.linear", (), (OUTPUT,), OUTPUT),
        # a module that encloses an end has parameters before it and, perhaps, after it
        ("block1", (), (*ENDS[1:], OUTPUT), None),
        ("block1", ENDS, ENDS[1:], None),
        ("block2", ENDS, (ENDS[2], OUTPUT), None),
        ("block1.head.linear", ENDS, ENDS[1:], None),  # not called in the forward pass: counts as its parent
        ("", ENDS, (*ENDS, OUTPUT), None),
    ],
)
def test_ends_that_a_module_reaches(three_blocks, name: str, cuts: tuple, ends: tuple, own: str | None) -> None:
    assert three_blocks.trace.ends_after(name, cuts) == (ends, own)


@pytest.mark.parametrize("cuts", [(), ENDS, ENDS[-1:], ENDS[:1]])
def test_reached_ends_are_those_that_move(three_blocks: fgvar.Problem, cuts: tuple[str, ...]) -> None:
    """Against a derivative along each site's tap and each module's weight, exactly zero or not."""
    problem = three_blocks
    taps = {f"{site}.tap": torch.zeros(shape, dtype=torch.float64) for site, shape in problem.trace.sites.items()}
    for key, value in {**taps, **{k: p for k, p in problem.params.items() if ".head." not in k}}.items():
        if key.endswith("token.bias"):
            continue  # dead: the layer norm after it cancels what it moves

        def observe(moved: Tensor, key=key) -> dict[str, Tensor]:
            tensors = {**problem.buffers, **problem.params, key: moved}
            outputs, values = problem.network.run(tensors, problem.inputs, watch=ENDS, cut=cuts)
            return {**{end: values[end] for end in ENDS}, OUTPUT: outputs}

        tangents = jvp(observe, (value,), (randn(*value.shape, seed=3),))[1]
        moving = tuple(end for end, tangent in tangents.items() if tangent.any())
        assert problem.trace.ends_after(key.rpartition(".")[0], cuts)[0] == moving, key


def test_a_module_called_twice_has_no_end_of_its_own() -> None:
    problem = problem_of(plain(Across))
    ends = ("head0.end", "head1.end")
    assert list(problem.trace.ends) == list(ends)
    assert len(problem.trace.visits["map"]) == 2
    assert problem.trace.ends_after("map", ends) == (ends, None)
    assert problem.trace.ends_after("map", ()) == ((*ends, OUTPUT), None)
    assert problem.trace.ends_after("last", ends) == ((OUTPUT,), OUTPUT)

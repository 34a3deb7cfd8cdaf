"""Threads that share a problem, or only the process, get the bits that one thread alone gets."""

import copy
import pickle
import threading
from collections.abc import Callable

import pytest
import torch
from cases import labels, mixer, randn
from nets import encoder, fixed
from torch import Tensor, nn

import fgvar
from fgvar.nn.skeleton import PerThread

ROUNDS = 40
Gradient = dict[str, Tensor]


def estimate(name: str, problem: fgvar.Problem, draw: int) -> Gradient:
    estimator = fgvar.scheme(name)
    noise = estimator.randomness(problem).sample(0, [draw], dtype=torch.float64)
    return estimator.estimate(problem, {key: u[0] for key, u in noise.items()}).gradient


def at_once(*works: Callable[[int], Gradient]) -> list[list[Gradient]]:
    """Each work in a thread of its own; all begin each round together."""
    barrier = threading.Barrier(len(works))
    found: list[list[Gradient]] = [[] for _ in works]
    errors: list[Exception] = []

    def run(work: Callable[[int], Gradient], into: list[Gradient]) -> None:
        for round_ in range(ROUNDS):
            barrier.wait()
            try:
                into.append(work(round_))
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(works, found, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, f"{len(errors)} of {ROUNDS * len(works)} estimates failed, the first by {errors[0]!r}"
    return found


def assert_same(found: list[Gradient], expected: list[Gradient]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(one[key], value) for key, value in other.items())


@pytest.mark.parametrize(
    "names",
    [("LG-BP", "LG-BP"), ("FG-A", "FG-A"), ("LG-BP", "LG-FG-A"), ("FA", "FG-W"), ("DFA", "FG-A")],
    ids="+".join,
)
def test_two_threads_on_one_problem(names: tuple[str, str]) -> None:
    """Each by its own estimator: the state of a pass, and torch's levels of forward mode, are not shared."""
    problem = mixer(batch=4)
    alone = [[estimate(name, problem, draw) for draw in range(ROUNDS)] for name in names]
    works = [lambda draw, name=name: estimate(name, problem, draw) for name in names]
    for found, expected in zip(at_once(*works), alone, strict=True):
        assert_same(found, expected)


def test_two_threads_on_two_problems() -> None:
    problems = [mixer(batch=2, seed=seed) for seed in (0, 1)]
    alone = [[estimate("FG-W", problem, draw) for draw in range(ROUNDS)] for problem in problems]
    works = [lambda draw, problem=problem: estimate("FG-W", problem, draw) for problem in problems]
    for found, expected in zip(at_once(*works), alone, strict=True):
        assert_same(found, expected)


def test_attention_in_two_threads_leaves_the_choice_of_kernels() -> None:
    """Whoever comes first chooses the plain kernels; whoever leaves last undoes it."""
    net = fgvar.with_sites(fixed(encoder()))
    problem = fgvar.Problem(net, "cross_entropy", (randn(2, 2, 3, seed=3), labels(2, 3)))
    alone = [estimate("FG-A", problem, draw) for draw in range(ROUNDS)]
    reverse = [problem.backprop()] * ROUNDS
    found = at_once(lambda draw: estimate("FG-A", problem, draw), lambda _: problem.backprop())
    assert_same(found[0], alone)
    assert_same(found[1], reverse)
    kernels = torch.backends.mha, torch.backends.cuda
    assert kernels[0].get_fastpath_enabled()
    assert kernels[1].flash_sdp_enabled()


def test_a_problem_made_in_one_thread_is_used_in_another() -> None:
    problem, found = mixer(), []
    thread = threading.Thread(target=lambda: found.append(problem.backprop()))
    thread.start()
    thread.join()
    assert_same(found, [problem.backprop()])


def test_what_belongs_to_a_thread_is_made_once_there() -> None:
    lists = PerThread(list)
    mine, others = lists.value, []
    thread = threading.Thread(target=lambda: others.extend([lists.value, lists.value]))
    thread.start()
    thread.join()
    assert lists.value is mine
    assert others[0] is others[1] is not mine


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda problem: pickle.loads(pickle.dumps(problem))])
def test_copies_have_skeletons_of_their_own(copied) -> None:
    problem = fgvar.Problem(nn.Linear(3, 2).double(), "mse", (randn(4, 3), randn(4, 2, seed=1)))
    other = copied(problem)
    assert other.network.skeleton is not problem.network.skeleton
    assert_same([other.backprop()], [problem.backprop()])

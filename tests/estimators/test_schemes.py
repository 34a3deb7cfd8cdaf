"""The table of schemes: every name runs, says truly whether it is biased, and costs what it says."""

import functools
from pathlib import Path

import pytest
import torch
from cases import mixer, randn
from refusals import says, with_sites

import fgvar
from fgvar.cli import main
from fgvar.measurement.cost import cost
from fgvar.testing import check_estimator, expectation
from fgvar.testing.polynomials import require_quadratic

NAMES = [found.name for found in fgvar.schemes()]
README = Path(fgvar.__file__).parent / "estimators" / "README.md"


def test_names_are_unique_and_have_a_line_and_a_source() -> None:
    assert len(set(NAMES)) == len(NAMES)
    for found in fgvar.schemes():
        assert found.line, found.name
        assert found.source, found.name


def test_the_readme_holds_the_table_as_it_is_printed(capsys) -> None:
    assert main(["schemes", "--markdown"]) == 0
    assert f"\n\n{capsys.readouterr().out}\n" in README.read_text()


@pytest.fixture(scope="module")
def reference() -> fgvar.Problem:
    """The network on which `Scheme.cost` says that it is counted."""
    net = fgvar.networks.LocalMixer((1, 8, 8), 10, blocks=2, patches=2, channels=64, groups=4, seed=0)
    return fgvar.Problem(net, "cross_entropy", (randn(8, 1, 8, 8).float(), torch.arange(8) % 10))


@pytest.mark.parametrize("name", NAMES)
def test_costs_are_counted(name: str, reference: fgvar.Problem) -> None:
    estimator = fgvar.scheme(name)
    counted = cost(estimator, reference, estimator.randomness(reference))
    listed = next(found.cost for found in fgvar.schemes() if found.name == name)
    assert abs(counted - listed) <= 0.051


@pytest.mark.parametrize("name", NAMES)
def test_bias_is_said_where_it_is_and_only_there(name: str) -> None:
    """By enumeration wherever the scheme is quadratic in its noise."""
    problem, estimator = mixer(blocks=1), fgvar.scheme(name)
    target = estimator.target(problem)
    if name == "minibatch":
        mean = expectation(estimator, problem, method="support")
    elif estimator.randomness(problem).size:
        try:
            require_quadratic(estimator, problem)
        except ValueError:
            # Held to their own laws by other tests.
            assert any(
                word in repr(estimator) for word in ("Projection", "Normalised", "Difference", "Noise", "Null")
            )
            return
        mean = expectation(estimator, problem)
    else:
        mean = estimator.estimate(problem, {}).gradient
    bias = max(float((mean[k] - target[k]).abs().max()) for k in problem.params)
    if name != "backprop-guess":  # whose line is the gradient's own, here
        assert (bias > 1e-6) == bool(estimator.bias_reason), (bias, estimator.bias_reason)


@pytest.mark.parametrize("name", NAMES)
def test_every_scheme_keeps_the_contract(name: str) -> None:
    report = check_estimator(
        fgvar.scheme(name), mixer(blocks=1), checks=["structure", "deterministic", "pure", "chunking", "repr"]
    )
    assert report.passed, report


@functools.cache
def meta() -> fgvar.Problem:
    net = fgvar.networks.LocalMixer((1, 4, 4), 3, blocks=2, patches=2, channels=8, groups=2).to("meta")
    batch = (torch.zeros(3, 1, 4, 4, device="meta"), torch.zeros(3, dtype=torch.int64, device="meta"))
    return fgvar.Problem(net, "cross_entropy", batch)


@pytest.mark.parametrize("name", NAMES)
def test_every_scheme_runs_where_no_number_can_be_read(name: str) -> None:
    """On the meta device: no CPU tensor hides in an estimate, and no host synchronisation."""
    problem, estimator = meta(), fgvar.scheme(name)
    noise = estimator.randomness(problem).sample(0, [0], device="meta") if estimator.randomness(problem).size else {}
    found = estimator.estimate(problem, {k: u[0] for k, u in noise.items()}).gradient
    assert all(g.is_meta and g.shape == problem.params[k].shape for k, g in found.items())


def test_errors() -> None:
    with pytest.raises(ValueError, match="unknown scheme 'FGA'; did you mean 'FG-A'"):
        fgvar.scheme("FGA")
    with pytest.raises(ValueError, match="unknown word of BP 'noise'"):
        fgvar.scheme("BP", noise=fgvar.Gaussian())
    with pytest.raises(ValueError, match="credit='published' chooses among copies of local losses; DFA has none"):
        fgvar.scheme("DFA", credit="published")


@pytest.mark.parametrize("name", ["L-BP", "LG-BP", "LG-FG-W", "LG-FG-A"])
def test_local_schemes_need_local_heads(name: str) -> None:
    message = says("no local heads, so it has no local losses", "LocalMixer", r"global loss \(FG-W, FG-A\)")
    with pytest.raises(ValueError, match=message):
        fgvar.scheme(name).randomness(with_sites())


@pytest.mark.parametrize("name", ["FG-W", "FG-A", "BP"])
def test_credit_needs_local_losses(name: str) -> None:
    with pytest.raises(ValueError, match=says("credit='published'", "copies of local losses", f"{name} has none")):
        fgvar.scheme(name, credit="published")

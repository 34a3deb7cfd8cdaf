"""Randomised dynamic programming: what do the faults of its released code do, and which states are worth a draw?

Question   Fu et al. 2022 sum over K1 states of a chain or a tree for certain and over K2 drawn ones, and publish
           how log Ẑ is biased. Which split of a budget is best, and where does the published bias come from?
Claim      From faults of the weights, so far as others of the same law can tell. With Des Raj's, E ω = 1, and log Ẑ
           keeps Jensen's bias alone. On chains of peaked potentials, 2 : 48, the released law has a bias of −1.25,
           which the forward recursion with potentials times E ω predicts; what is put back −0.057; Des Raj's weights
           −0.018, at a third of the variance (0.035 for 0.103). How many states to take for certain is a matter of
           the potentials: half of the budget where they are peaked, none where they are flat. On trees as published
           the faults give biases of 2.15, 0.70, 0.67, 0.59 and 0.04, for published 1.76, 0.85, 1.09, 0.77 and −0.03,
           and 0.00 without them; from K1 = 100 on these are of rare events, which 100 draws do not settle.
           Differentiating the proposal biases marginals by 14 % (peaked) and 8 % (flat); on flat chains it looks
           good, of cosine 0.997, as does the proposal without any draw.
Shown      Drawn values with errors, means over ten networks. Exact: log Z and marginals by the recursion, E Ẑ² of
           what is put back by that over pairs of states, E Ẑ of what is weighed as if put back, by inclusion
           probabilities. −Var Ẑ/2Z² is an approximation of Jensen's bias, to second order.
Differs    The paper's equations were not read: the laws are those of its code, whose 10⁻⁸ beside a probability is
           left out. Its potentials are not published: ours are others by the notebook's law (peaked chains, trees) or
           a new LinearChain's (flat). Spans of a tree all have the same, so that Z is Catalan's number times a power.
           Not reproduced: its 10,000 states, trained potentials, entropies and language models.
Cost       About fifteen minutes on one core, eight on two (--workers 2); --smoke: seconds.
Run        python studies/rdp.py --workers 2            writes results/rdp.nc, .pdf and .png
"""

from dataclasses import dataclass, replace
from typing import Any

from studies import common
from studies.common import RESULTS, Options, Run

# The notebook TreeCRF_K1K2 of the released code, "Dense": bias and variance of log Ẑ of 100 draws for one network.
PUBLISHED = {
    199: (-0.02844, 0.01429),
    150: (0.77394, 3.55320),
    100: (1.09314, 3.53797),
    50: (0.84786, 1.85935),
    10: (1.75956, 0.52180),
}
PUBLISHED_DRAWS = 100
FAULTS = {"as_put_back": True, "refilled": True}  # those of Ẑ; the third is in what is differentiated
ROWS = (
    "released",
    "released, detached",
    "put back",
    "Des Raj",
    "top-K alone",
    "proposal alone",
)  # the last draw nothing
LAWS = ("released", "fault 1 alone", "Des Raj")


@dataclass(frozen=True)
class Config:
    """Sample the states of chains and trees, with and without the faults of the released code."""

    potentials: tuple[str, ...] = ("peaked", "flat")
    """Of the chains: by the law of the paper's notebook, or of a new LinearChain."""
    top: tuple[int, ...] = (0, 2, 5, 10, 25, 40, 45, 49)
    """K1 of the chains."""
    budget: int = 50
    """K1 + K2 of the chains."""
    states: int = 500
    steps: int = 10
    draws: int = 1024
    """Of log Ẑ on the chains."""
    gradients: int = 256
    """Draws of the marginals."""
    tree_top: tuple[int, ...] = tuple(PUBLISHED)
    """K1 of the trees."""
    tree_budget: int = 200
    tree_states: int = 2000
    tree_steps: int = 15
    tree_draws: int = PUBLISHED_DRAWS
    run: Run = Options(RESULTS / "rdp.nc", seed=tuple(range(10)))


def main(config: Config) -> None:
    from figures import rdp

    if config.run.smoke:
        run = replace(config.run, seed=config.run.seed[:1])
        config = replace(config, top=(2, 5), budget=6, states=12, steps=3, draws=16, gradients=16, run=run)
        config = replace(config, tree_top=(10, 50), tree_budget=60, tree_states=80, tree_steps=4, tree_draws=16)
    if not all(top < config.budget <= config.states for top in config.top) or not all(
        top < config.tree_budget <= config.tree_states for top in config.tree_top
    ):
        raise ValueError(
            f"K1 is {list(config.top)} of a budget of {config.budget} and {config.states} states, and on trees "
            f"{list(config.tree_top)} of {config.tree_budget} and {config.tree_states}; expected less than the "
            "budget, and that no more than the states"
        )
    names = ("budget", "states", "steps", "draws")
    chains = {name: getattr(config, name) for name in names}
    axes = {"potentials": config.potentials, "top": config.top}
    dataset = common.sweep(cell, axes, chains | {"gradients": config.gradients}, config.run, "chains")
    trees = {name: getattr(config, f"tree_{name}") for name in names}
    of_trees = common.sweep(tree_cell, {"tree_top": config.tree_top}, trees, config.run, "trees")
    dataset = published(together(dataset, of_trees))
    common.publish(dataset, config, rdp, report(dataset))


def cell(
    *, potentials: str, top: int, seed: int, budget: int, states: int, steps: int, draws: int, gradients: int
) -> Any:
    """One split on one chain: log Ẑ and its gradient by all rows, and what is known of them exactly."""
    import xarray as xr

    import fgvar
    from fgvar import theory
    from studies import rdp_networks

    made = {"peaked": (rdp_networks.peaked, 50), "flat": (rdp_networks.flat, 8)}
    if potentials not in made:
        raise ValueError(f"potentials are {potentials!r}, expected one of: {', '.join(made)}")
    network, hidden = made[potentials]
    at = rdp_networks.problem_of(network(states, steps, hidden, seed))
    rows = rows_of(top, budget)
    found = {name: moments_of(rdp_networks.log_sums(row, at, draws, seed)) for name, row in rows.items()}
    # Controls that draw nothing: all that is spent on the highest states, and the proposal in place of the marginals.
    highest = at.tapped("terms", rdp_networks.highest_of(at, budget))
    found["top-K alone"] = moments_of((highest.loss() - at.loss()).detach().expand(2))
    found["proposal alone"] = dict.fromkeys(found["released"], float("nan"))
    values = {name: [found[row][name] for row in ROWS] for name in found["released"]} | of_marginals(
        fgvar.measure(rows, at, draws=gradients, seed=seed),
        {"top-K alone": highest.backprop()["emissions"], "proposal alone": rdp_networks.proposal_of(at)},
        at.backprop()["emissions"],
    )
    products = rows["put back"].sample.products(at, "terms")[0]
    second = theory.log_second_moment(at.params["emissions"], at.buffers["transitions"], products)
    mean = at.tapped("terms", rdp_networks.mean_weights(rows["Des Raj"].sample, at)).loss()
    exact = {
        "spread_exact": (second - 2 * at.loss()).expm1().item(),  # of what is put back: Var Ẑ/Z²
        "fault_1_exact": (mean - at.loss()).item(),  # log E Ẑ − log Z of what is weighed as if put back
        "log_z": at.loss().item(),
    }
    return xr.Dataset({name: ("row", one) for name, one in values.items()}, {"row": list(ROWS)}).assign(exact)


def of_marginals(measured: Any, known: dict[str, Any], marginals: Any) -> dict[str, list[float]]:
    """Of the gradient of log Ẑ: cosine to the marginals, squared bias and variance over their squared norm."""
    from torch.nn.functional import cosine_similarity

    its = measured.sel(layer="total", reference="target", estimator=list(ROWS[: -len(known)]))
    square = its["gradient_norm"] ** 2
    drawn = {"cosine": its["cosine"], "cosine_se": its["cosine_se"], "relative_variance": its["relative_variance"]}
    drawn |= {f"relative_sq_bias{end}": its[f"sq_bias{end}"] / square for end in ("", "_se")}
    values = {name: one.values.tolist() for name, one in drawn.items()}
    for one in known.values():
        values["cosine"].append(cosine_similarity(one.flatten(), marginals.flatten(), dim=0).item())
        values["relative_sq_bias"].append(((one - marginals).square().sum() / marginals.square().sum()).item())
        for name in ("cosine_se", "relative_sq_bias_se", "relative_variance"):
            values[name].append(0.0)
    return values


def tree_cell(*, tree_top: int, seed: int, budget: int, states: int, steps: int, draws: int) -> Any:
    """One split on one tree: log Ẑ by the released law, by its first fault alone and without; its E Ẑ, exactly."""
    import numpy as np
    import xarray as xr

    from studies import rdp_networks
    from studies.rdp_networks import code_of, log_sums, mean_weights

    at = rdp_networks.problem_of(rdp_networks.Tree(states, steps, 100, seed))
    rows = {
        "released": code_of(tree_top, budget, **FAULTS),
        "fault 1 alone": code_of(tree_top, budget, as_put_back=True),
        "Des Raj": code_of(tree_top, budget),
    }
    found = [moments_of(log_sums(rows[law], at, draws, seed, chunk=20)) for law in LAWS]
    omega = mean_weights(rows["Des Raj"].sample, at, rows=1)[0, 0]
    again = rdp_networks.drawn_again(rows["released"].sample, at) * steps * (steps + 1) / 2
    share = at.params["potentials"].softmax(0)
    by_rank = omega[share.argsort(descending=True)].numpy()
    rank = np.unique(np.geomspace(1, states, 60).round().astype(int))
    variables = {f"tree_{name}": ("law", [one[name] for one in found]) for name in ("bias", "bias_se", "variance")}
    variables["tree_variance_se"] = ("law", [one["variance_se"] for one in found])
    dataset = xr.Dataset(variables, {"law": list(LAWS), "rank": rank})
    # All spans have the same potentials, so that E Ẑ is the inside recursion of one ratio, to the power 2T − 1.
    exact = (2 * steps - 1) * (share @ omega).log().item()
    known = {"tree_exact": exact, "drawn_again": again, "tree_log_z": float(at.loss())}
    return dataset.assign(known).assign(mean_weight=("rank", by_rank[rank - 1]))


def rows_of(top: int, budget: int) -> dict[str, Any]:
    """The rows that draw."""
    import fgvar
    from fgvar import sampling
    from studies.rdp_networks import code_of

    put_back = sampling.Draw(budget - top, top=top, by=sampling.Outputs("proposal"), over="terms")
    return {
        "released": code_of(top, budget, **FAULTS, attached=True),
        "released, detached": code_of(top, budget, **FAULTS),
        "put back": fgvar.Stochastic(sample=put_back),
        "Des Raj": fgvar.Stochastic(sample=replace(put_back, replace=False)),
    }


def moments_of(x: Any) -> dict[str, float]:
    """Of x = log Ẑ/Z: mean and variance, and the mean square of Ẑ/Z − 1, each with its standard error."""
    n = len(x)

    def mean(values: Any) -> tuple[float, float]:
        return values.mean().item(), (values.var() / n).sqrt().item()

    bias, variance, spread = mean(x), mean((x - x.mean()).square() * (n / (n - 1))), mean(x.expm1().square())
    named = {"bias": bias, "variance": variance, "spread": spread}
    return {f"{name}{end}": one[i] for name, one in named.items() for i, end in enumerate(("", "_se"))}


def together(chains: Any, trees: Any) -> Any:
    """Both sweeps as one dataset; what they have both is the trees' by another name."""
    common_names = {"status", "cell_seconds"} & {*trees.variables}
    trees = trees.drop_vars("traceback").rename({name: f"tree_{name}" for name in common_names})
    attributes = {
        f"tree_{name}": trees.attrs.get(f"config_{name}") for name in ("budget", "states", "steps", "draws")
    }
    found = chains.drop_vars("traceback").merge(trees, combine_attrs="override")
    return found.assign_attrs({name: value for name, value in attributes.items() if value is not None})


def published(dataset: Any) -> Any:
    """With the notebook's numbers beside those of the trees; NaN for other splits."""
    nothing = (float("nan"),) * 2
    for i, name in enumerate(("bias", "variance")):
        values = [PUBLISHED.get(int(top), nothing)[i] for top in dataset["tree_top"]]
        dataset[f"published_{name}"] = ("tree_top", values, {"source": "Fu et al. 2022, code, TreeCRF_K1K2.ipynb"})
    dataset.attrs["published_draws"] = PUBLISHED_DRAWS
    return dataset


def report(dataset: Any) -> str:
    """A line for each chain, split and row, and for each tree."""
    from fgvar.plot import intervals

    means = intervals.over_seeds(dataset)
    lines = [
        f"{'potentials':<10}{'K1':>5} {'row':<19}{'bias':>9}{'variance':>11}{'spread':>10}{'exact':>10}{'cosine':>9}"
    ]
    for potentials in dataset["potentials"].values:
        for top in dataset["top"].values:
            for row in ROWS:
                its = means.sel(potentials=potentials, top=top, row=row)
                numbers = [its[name].item() for name in ("bias", "variance", "spread", "spread_exact", "cosine")]
                shown = "".join(f"{x:>{w}.4g}" for x, w in zip(numbers, (9, 11, 10, 10, 9), strict=True))
                lines.append(f"{potentials:<10}{top:>5} {row:<19}{shown}")
    for top in dataset["tree_top"].values:
        its = means.sel(tree_top=top)
        drawn = ", ".join(
            f"{law} {its['tree_bias'].sel(law=law).item():.3f} ({its['tree_variance'].sel(law=law).item():.3g})"
            for law in LAWS
        )
        lines.append(
            f"tree {top:>4} {drawn}; fault 1 exactly {its['tree_exact'].item():.3f}; published "
            f"{its['published_bias'].item():.3f} ({its['published_variance'].item():.3g})"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    common.main(main, Config, __doc__)

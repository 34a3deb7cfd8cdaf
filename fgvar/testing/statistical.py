"""Placeholder of the statistical verdict, until the calibrated one is merged."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Means:
    passed: bool
    worst: int
    detectable: list
    z: float


def means(samples, expected, *, level):
    from scipy import special

    x = samples.double()
    n = len(x)
    d = x.mean(0) - expected
    se = x.std(0) / n**0.5
    z = torch.where(se > 1e-12, d / se, torch.where(d.abs() < 1e-9, 0.0, float("inf")).double()).abs()
    crit = float(special.ndtri(1 - level / 2 / len(z)))
    return Means(bool(z.max() <= crit), int(z.argmax()), ((crit + 1.645) * se).tolist(), float(z.max()))


@dataclass(frozen=True)
class Verdict:
    b: object
    s: object

    @property
    def unbiased(self):
        return self.b.passed

    @property
    def scaled(self):
        return self.s.passed

    @property
    def passed(self):
        return self.unbiased and self.scaled

    def sentence(self, kind):
        return str(self.b if kind == "bias" else self.s)


def unbiased(estimator, problem, *, level, chunk=None, draws=4096, seed=0):
    from fgvar.analysis.draws import estimates, ranges

    r = estimator.randomness(problem)
    t = estimator.target(problem)
    out = []
    for w in ranges(0, draws, chunk or 256):
        g = estimates(estimator, problem, r.sample(seed, w, dtype=problem.dtype))
        out.append({k: (v - t[k]).flatten(1) for k, v in g.items()})
    D = {k: torch.cat([o[k] for o in out]) for k in t}
    s = torch.stack([D[k] @ t[k].flatten() / t[k].norm() ** 2 for k in t if t[k].norm() > 1e-6], 1)
    return Verdict(means(torch.cat(list(D.values()), 1), 0.0, level=level / 2), means(s, 0.0, level=level / 2))

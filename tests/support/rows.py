"""Rows of the second sentence, at least one with each of its words, on one network that all of them fit."""

import torch
from torch import nn

import fgvar
from fgvar import points, sampling, streams, targets, transforms


def network(inputs: int = 64, width: int = 8, classes: int = 10) -> nn.Module:
    """A site, and a sum inside: the read-out adds up the terms."""
    layers = nn.Flatten(), nn.Linear(inputs, width), nn.Tanh(), fgvar.Terms(), nn.Linear(width, classes)
    net = nn.Sequential(*layers)
    for seed, p in enumerate(net.parameters()):
        p.data.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    return fgvar.with_sites(net, sites=["1"])


def rows(beside: fgvar.Problem) -> dict[str, fgvar.GradientEstimator]:
    """With another problem of the same network for the words that hold one."""
    draw, forward, of_loss = sampling.Draw, fgvar.scheme("FG-W"), sampling.Losses()
    there = transforms.Carriers(2)

    def sampled(sample: object) -> fgvar.Stochastic:
        return fgvar.Stochastic(sample=sample)

    def at(point: object) -> fgvar.Stochastic:
        return fgvar.Stochastic(at=point, sample=draw(2))

    def then(*shaping: object) -> fgvar.Stochastic:
        return fgvar.Stochastic(sample=draw(2), then=shaping)

    return {
        "accumulated": fgvar.Stochastic(forward, sampling.Everything(), workers=2),
        "FG-W of a draw": fgvar.Stochastic(forward, draw(2), workers=2),
        "by losses": sampled(draw(2, top=1, by=of_loss)),
        "not put back": sampled(draw(2, by=sampling.Outputs(), replace=False)),
        "by norms": sampled(draw(2, by=sampling.Mixed(sampling.GradientNorms(), 0.2), weigh="normalised")),
        "terms": sampled(draw(3, top=1, by=sampling.TermSizes(), over="terms")),
        "Poisson": sampled(sampling.Poisson(0.5, divide="sampled")),
        "union": sampled(sampling.Union((draw(2), draw(1, by=of_loss)), weigh="none")),
        "reweighted": sampled(sampling.Reweighted(of_loss)),
        "SAM": at(points.Ahead(by=fgvar.ExactGradient(), step=-0.05, unit=True)),
        "smoothed": at(points.Ahead(by=points.Noise(), step=0.1)),
        "tapped": at(points.Tapped("1.site", scale=0.1)),
        "DP-SGD": fgvar.Stochastic(
            sample=sampling.Poisson(0.5), each=(transforms.Clip(1.0),), then=(transforms.AddNoise(0.01),)
        ),
        "clipped FG-W": fgvar.Stochastic(forward, draw(2), each=(transforms.Clip(1.0), transforms.Sign())),
        "mask": then(transforms.Mask(transforms.Magnitude(0.4))),
        "shuffled mask": then(transforms.Mask(transforms.Magnitude(0.4, shuffled=0))),
        "mask by saliency": then(transforms.Mask(transforms.Saliency(beside, 1.0))),
        "carriers": then(there, transforms.AddNoise(0.1), there.back),
        "top-k": then(transforms.TopK(0.1)),
        "random-k": then(transforms.RandomK(0.1)),
        "quantised": then(transforms.Quantise(4)),
        "retained": then(transforms.Retained(beside, steps=2, lr=0.05)),
        "momentum": fgvar.History(sampled(draw(2)), streams.Momentum(0.5), steps=3, lr=0.1),
        "kept": at(points.Ahead(by=points.Kept(beside.backprop()), step=0.1)),
        "past": fgvar.History(at(points.Ahead(by=points.Past(), step=0.1)), streams.Momentum(0), steps=3, lr=0.1),
        "Adam": fgvar.History(forward, streams.Adam(factor=streams.DiffGrad(), amsgrad=True), steps=3, lr=0.1),
        "error feedback": fgvar.History(
            sampled(draw(2)), streams.ErrorFeedback(transforms.Quantise(2)), steps=3, lr=0.1
        ),
        "against": fgvar.Against(sampled(draw(2)), targets.Newton(beside, damping=1.0)),
    }


NAMES = tuple(rows(fgvar.Problem(network(1, 1, 1), "mse", (torch.ones(1, 1), torch.ones(1, 1)))))

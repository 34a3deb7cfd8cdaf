"""Networks whose activities can be perturbed, ordinary modules that contain sites; and the parts of one's own."""

from fgvar.networks.gradinit import gradinit
from fgvar.networks.linear_chain import LinearChain, chain_nll
from fgvar.networks.local_mixer import LocalMixer
from fgvar.networks.mlp import MLP
from fgvar.networks.residual import PoissonResidual
from fgvar.nn.forward_mode import layer_norm
from fgvar.nn.heads import LocalHead, ReadOut, initialise
from fgvar.nn.reach import OUTPUT
from fgvar.nn.sites import Site
from fgvar.nn.traits import Traits

__all__ = [
    "MLP",
    "OUTPUT",
    "LinearChain",
    "LocalHead",
    "LocalMixer",
    "PoissonResidual",
    "ReadOut",
    "Site",
    "Traits",
    "chain_nll",
    "gradinit",
    "initialise",
    "layer_norm",
]

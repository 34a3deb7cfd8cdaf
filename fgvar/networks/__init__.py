"""Networks whose activities can be perturbed: ordinary modules that contain sites."""

from fgvar.networks.local_mixer import LocalMixer
from fgvar.networks.mlp import MLP
from fgvar.nn.sites import Site

__all__ = ["MLP", "LocalMixer", "Site"]

"""Networks whose activities can be perturbed, ordinary modules that contain sites; and what own ones may declare."""

from fgvar.networks.local_mixer import LocalMixer
from fgvar.networks.mlp import MLP
from fgvar.nn.sites import Site
from fgvar.nn.traits import Traits

__all__ = ["MLP", "LocalMixer", "Site", "Traits"]

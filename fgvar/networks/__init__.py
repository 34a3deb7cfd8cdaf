"""Networks whose activities can be perturbed: ordinary modules that contain sites."""

from fgvar.networks.local_mixer import LocalMixer
from fgvar.networks.mlp import MLP

__all__ = ["MLP", "LocalMixer"]

"""Training: complete runs by any estimator, with probes and checkpoints, on one process or several.

`fgvar.train` does it all; here is what scripts around it need: the steps of a run, and what its processes share.
"""

from fgvar.lazy import lazy

_NAMES = {
    "log_steps": "fgvar.training.probes",
    "steps_of": "fgvar.training.train",
    "broadcast_bytes": "fgvar.training.distributed",
    "join": "fgvar.training.distributed",
    "world": "fgvar.training.distributed",
}

__all__ = list(_NAMES)
__getattr__, __dir__ = lazy(__name__, _NAMES)

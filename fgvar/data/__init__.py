"""Data for studies and training runs: images, examples of any structure, and random views of images."""

from fgvar.data.augmentation import Views
from fgvar.data.examples import Examples
from fgvar.data.images import Images, load

__all__ = ["Examples", "Images", "Views", "load"]

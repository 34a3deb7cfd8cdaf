"""Image data for studies and training runs, and random views of it."""

from fgvar.data.augmentation import Views
from fgvar.data.images import Images, load

__all__ = ["Images", "Views", "load"]

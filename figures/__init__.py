"""Figures: pictures of stored datasets; whatever draws needs the packages of the extra "studies"."""

from importlib import import_module

from fgvar.errors import needs_extra

with needs_extra("drawing figures", "studies"):
    for _package in ("matplotlib", "seaborn", "pandas", "jinja2", "tueplots"):
        import_module(_package)

"""Redraw every figure from its stored dataset, beside it.

Run   python -m figures [FOLDER]
"""

from importlib import import_module
from pathlib import Path

import tyro

from figures import command
from figures.examples import EXAMPLES

OTHERS = {"table3_long": "table3", "table3_long_probes": "table3_probes"}  # dataset → whose figures it has


def main(folder: tyro.conf.Positional[Path] = Path(__file__).parent / "data") -> None:
    """Redraw every figure from its stored dataset, beside it.

    Args:
        folder: of datasets, each named like the module that draws it, one of `OTHERS`, or an example of
            studies/README.md.
    """
    for dataset in sorted(folder.glob("*.nc")):
        if dataset.stem in EXAMPLES:
            command.write(command.Config(dataset), EXAMPLES[dataset.stem])
            continue
        module = import_module(f"figures.{OTHERS.get(dataset.stem, dataset.stem)}")
        command.write(command.Config(dataset), module.FIGURES, getattr(module, "table", None))


if __name__ == "__main__":
    tyro.cli(main)

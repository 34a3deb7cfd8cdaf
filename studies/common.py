"""What all studies share: their command line, the sweep of their cells, and how a dataset becomes files."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import tyro

from fgvar.storage import require_place

RESULTS = Path(__file__).resolve().parents[1] / "results"
Config = TypeVar("Config")


@dataclass(frozen=True)
class Options:
    """Where cells are computed and kept. What was interrupted goes on by the same command.

    Example:
        >>> Options(Path("results/depth.nc"), workers=2).arguments()["folder"].as_posix()
        'results/depth'
    """

    out: Path
    """The dataset. Its cells are kept in the folder of this name without the suffix; the same command goes on."""
    seed: tuple[int, ...] = (0,)
    """An axis: more seeds extend the cells that are there."""
    workers: int = 0
    """Processes on this machine. 0: this one."""
    scheduler: str | None = None
    """Address of a dask cluster to compute on instead."""
    shard: str = "0/1"
    """i/n: the i-th of n parts, from 0, for job arrays on a shared folder."""
    timeout: float | None = None
    """Seconds after which a cell is stopped."""
    collect: bool = False
    """Compute nothing: write the dataset of the cells that are there."""
    smoke: bool = False
    """A few seconds, whose numbers mean nothing."""

    def arguments(self) -> dict[str, Any]:
        """For `fgvar.sweep`, beside the cell and its axes. A smoke run keeps its cells apart.

        Raises:
            ValueError: an ``out`` without a suffix, which would be its own folder of cells.
        """
        if not self.out.suffix:
            raise ValueError(f"--out {self.out} has no suffix, and is its own folder of cells; give {self.out}.nc")
        out = self.out.with_stem(f"{self.out.stem}_smoke") if self.smoke else self.out
        return {
            "folder": out.with_suffix(""),
            "out": out,
            "seed": self.seed,
            "workers": self.workers,
            "scheduler": self.scheduler,
            "shard": self.shard,
            "timeout": self.timeout,
            "compute": not self.collect,
        }


# Of the field ``run: Run = Options(RESULTS / …)`` of a study's configuration: --out, not --run.out.
Run = tyro.conf.OmitArgPrefixes[Options]


def main(study: Callable[[Config], None], config: type[Config], description: str | None) -> None:
    """Run a study by its command line; what the user can mend is one line."""
    name = Path(sys.argv[0]).stem
    try:
        # tyro joins a line that is not indented to the one before it, unless a blank line parts them
        study(tyro.cli(config, description=re.sub(r"(?<!\n)\n(?=\w)", "\n\n", description or "")))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        goes_on = "run" in {field.name for field in fields(config)}  # type: ignore[arg-type]
        sys.exit(f"{name}: stopped; the same command {'goes on from here' if goes_on else 'begins anew'}")


def place(config: Any) -> Path:
    """Where the study's dataset goes.

    Raises:
        OSError: it cannot be written, or one that it is to be put onto is not there.
    """
    if (onto := getattr(config, "onto", None)) and not onto.is_file():  # said before hours of computing
        raise FileNotFoundError(f"--onto {onto}: no such file")
    out: Path = config.run.arguments()["out"] if hasattr(config, "run") else config.out
    require_place(out)
    return out


def sweep(
    cell: Callable[..., Any],
    axes: Mapping[str, Sequence[Any]],
    settings: Mapping[str, Any],
    run: Options,
    part: str = "",
    scratch: Path | None = None,
) -> Any:
    """All cells of a study, or of the ``part`` that has a file of its own beside the cells.

    In a folder ``scratch`` every cell gets one of its own, for what it needs to go on where it was stopped.

    Raises:
        ValueError: no cell is done.
    """
    import fgvar

    how = run.arguments()
    if part:
        how["out"] = how["folder"] / f"{part}.nc"
    dataset = fgvar.sweep(cell, axes, config=settings, scratch=scratch, **how)
    if not (dataset["status"] == "done").any():
        raise ValueError("no cell is done; see above, or run without --collect")
    return dataset


def by_point(dataset: Any, along: str) -> Any:
    """A sweep along one axis over ``point``, with the axis as ``size``: sweeps along other axes fit beside it."""
    sizes = ("point", dataset[along].values, {"long_name": along})
    found = dataset.drop_vars(["traceback", along]).rename({along: "point"}).assign(size=sizes)
    return found.assign_coords(point=range(found.sizes["point"]))


def onto(path: Path | None, made: Any, there: Any, **order: Callable[[Any], Any]) -> Any:
    """A stored dataset of the study, in which the runs that were made now take their places: long ones need pieces.

    Args:
        path: of the stored dataset; None: ``made`` alone.
        made: a dataset of other labels or the same. Variables that the stored one lacks are left out: a figure of
            some runs' intervals and others' standard errors would show neither. Of those that it lacks itself the
            places of its runs are empty.
        there: which runs ``made`` has, over some of its dimensions.
        order: dimension → key that its labels are sorted by; of others, those of the stored one come first.

    Raises:
        ValueError: a dataset of another study, or of runs that a coordinate, as of their data, tells from these.
    """
    import xarray as xr

    import fgvar

    if path is None:
        return made
    stored = fgvar.open_dataset(path)
    if missing := [dim for dim in there.dims if dim not in stored.dims]:
        raise ValueError(f"--onto {path} has no axis {missing[0]!r}, expected a dataset that this study has written")
    common = [dim for dim in made.indexes if dim in stored.dims]
    labels = {dim: list(dict.fromkeys([*stored[dim].values, *made[dim].values])) for dim in common}
    labels |= {dim: sorted(labels[dim], key=key) for dim, key in order.items()}
    old, new = (one.reset_coords([*one.coords.keys() - one.indexes.keys()]).reindex(labels) for one in (stored, made))
    there = there.reset_coords(drop=True).reindex({dim: labels[dim] for dim in there.dims}, fill_value=False)
    found = old.copy()
    for name, each in old.items():
        if name not in made.variables and set(there.dims) <= set(each.dims):
            empty = "" if each.dtype.kind in "OU" else float("nan")
            found[name] = xr.where(there, empty, each).transpose(*each.dims).assign_attrs(each.attrs)
            found[name].encoding = each.encoding
    own = [*made.coords.keys() - made.indexes.keys()]
    for name, each in made.reset_coords().data_vars.items():
        if name not in old:
            continue
        if name in own and each.dtype.kind in "OU":
            _require_same(f"--onto {path}", old[name], new[name])
        whole = set(there.dims) <= set(each.dims)
        value = xr.where(there if whole else new[name].notnull(), new[name], old[name]).transpose(*each.dims)
        # What neither has is NaN: of what counts in both, none.
        if each.dtype.kind in "iu" and stored[name].dtype.kind in "iu":
            value = value.fillna(0).astype(each.dtype)
        elif each.dtype.kind in "OU":
            value = value.fillna("").astype(str)
        found[name] = value.assign_attrs(each.attrs)
        found[name].encoding = each.encoding
    found = found.set_coords([name for name in own if name in found])
    return found.assign_attrs(
        {name: _both(stored.attrs.get(name), made.attrs.get(name)) for name in {**stored.attrs, **made.attrs}}
    )


def _both(stored: Any, made: Any) -> Any:
    """An attribute of two pieces: that of either, or what both say, once each."""
    if stored is None or made is None or stored == made:
        return stored if made is None else made
    return ", ".join(dict.fromkeys([*_listed(str(stored)), *_listed(str(made))]))


def _listed(text: str) -> list[str]:
    """What a text lists by commas; those within brackets belong to one of it."""
    found: list[str] = []
    for each in text.split(", "):
        if found and sum(found[-1].count(mark) for mark in "([{") > sum(found[-1].count(mark) for mark in ")]}"):
            found[-1] += f", {each}"
        else:
            found.append(each)
    return found


def _require_same(what: str, stored: Any, made: Any) -> None:
    """Raise where both have a text of one label, and another one."""
    other = (stored != made) & stored.fillna("").astype(bool) & made.fillna("").astype(bool)
    for theirs, ours in zip(stored.values[other.values], made.values[other.values], strict=True):
        raise ValueError(f"{what} has the {stored.name} {theirs} where these runs have {ours}; leave --onto out")


def publish(dataset: Any, config: Any, figure: ModuleType, report: str = "") -> None:
    """Save the dataset with its study and configuration, print the report (or the table), draw the figures."""
    import fgvar
    from figures import command

    dataset.attrs |= {"study": Path(figure.PAGE.source).stem, "configuration": described(config)}
    for name, value in dataset.attrs.items():
        if isinstance(value, str) and Path(value).is_absolute():  # a sweep's own words for a folder of this machine
            dataset.attrs[name] = Path(value).name
    table = getattr(figure, "table", None)
    if table and not report:
        report = table(dataset).to_string()
    print(report, end="\n" if report else "")
    out = fgvar.save(dataset, place(config))
    print(out)
    command.write(command.Config(out), figure.FIGURES, table)


def described(config: Any) -> str:
    """A study's configuration for its dataset: without the paths of a machine."""
    given = {field.name: getattr(config, field.name) for field in fields(config)}
    named = {k: v for k, v in given.items() if isinstance(v, Path | str) and Path(v).is_absolute()}
    config = replace(config, **{name: type(value)(Path(value).name) for name, value in named.items()})
    if hasattr(config, "run"):
        return repr(replace(config, run=replace(config.run, out=Path("results") / config.run.out.name)))
    return repr(replace(config, out=Path("results") / config.out.name))

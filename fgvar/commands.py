"""The commands of ``fgvar`` that compute: their options, and what each of them answers.

A command is read before torch is imported, so that help is instant: what it needs is imported as it answers.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from fgvar.measurement.text_tables import CommandResult, format_table, to_json, to_markdown, to_tsv

if TYPE_CHECKING:
    import fgvar
    from fgvar.data.images import Images

PROG = "fgvar"


@dataclass(frozen=True)
class Output:
    plain: bool = False
    """Tab-separated, with a header line and all digits."""
    json: bool = False
    """A list of records, missing numbers as null."""
    markdown: bool = False
    """A table in Markdown."""

    def form(self, answer: CommandResult) -> str:
        for asked, written in ((self.json, to_json), (self.plain, to_tsv), (self.markdown, to_markdown)):
            if asked:
                return written(answer.rows)
        return answer.text


Printed = tyro.conf.OmitArgPrefixes[Output]


@dataclass(frozen=True)
class Schemes:
    """List the names of schemes, with their source, cost (in forward passes) and bias."""

    output: Printed = Output()

    def answer(self) -> CommandResult:
        import fgvar

        rows = [
            {
                "name": found.name,
                "line": found.line,
                "source": found.source,
                "cost": found.cost,
                "biased": found.bias_reason or "no",
            }
            for found in fgvar.schemes()
        ]
        return CommandResult(format_table(rows), rows)


@dataclass(frozen=True)
class Measure:
    """Measure bias, variance and cosine of schemes, on a freshly initialised LocalMixer or on a problem of yours."""

    scheme: tuple[str, ...] = ("FG-W", "FG-A", "LG-FG-W", "LG-FG-A")
    """Names of `fgvar schemes`, or your own: module:name or path/to/file.py:name."""
    problem: str | None = None
    """Your own network, loss and batch: path/to/file.py:name or module:name, of a function that returns a Problem."""
    network: str = "S/1/1"
    """Preset: S/1/1, M/1/16, M/8/16, L/8/64 or L/32/64; image shape and classes are the data's."""
    blocks: int | None = None
    """Blocks, patches, channels, groups: other than the preset's."""
    patches: int | None = None
    channels: int | None = None
    groups: int | None = None
    data: str = "digits"
    """"digits", a directory of parquet files or images, or a name on the Hugging Face hub."""
    batch: int = 32
    """Examples of the train split."""
    draws: int = 256
    """Estimates of each scheme."""
    seed: int = 0
    """Of the weights, the batch and the noise; with --problem of the noise."""
    route: Literal["drawn", "exact"] = "drawn"
    """Exact: closed forms, without a draw and with errors of 0."""
    paired: bool = False
    """Compare all schemes with the first one, by common noise."""
    chunk: int | None = None
    """Estimates at once; 1 for estimators that do not run under torch.func.vmap. Default: from a gigabyte."""
    device: str = "auto"
    """"auto" is CUDA where there is one."""
    layer: tuple[str, ...] = ()
    """Parameters by name, "perturbed" (all that schemes estimate; the default), "total", or "all" of these."""
    out: Path | None = None
    """Keep the whole dataset in this netCDF file."""
    output: Printed = Output()

    def answer(self) -> CommandResult:
        import fgvar
        from fgvar.measurement.references import GROUPS
        from fgvar.measurement.report import require_layers, rows, to_text
        from fgvar.storage.atomic import require_ending, require_place
        from fgvar.testing.load import load_estimator

        own = [name for name in (*self.scheme, self.problem or "") if ":" in name]
        if not self.scheme:
            raise ValueError("--scheme names none; give one or more, as --scheme LG-FG-A FG-A")
        if twice := [name for name in self.scheme if self.scheme.count(name) > 1]:
            raise ValueError(f"--scheme names {twice[0]} twice; name it once")
        if self.out is not None:  # before any computing
            require_ending(self.out, ["nc"])  # else a slip, --out rows.py, would replace somebody's source
            require_place(self.out)
        estimators = {name: load_estimator(name) for name in self.scheme}
        problem, described = self._own_problem() if self.problem else self._image_problem()
        require_layers(self.layer, [*problem.params, *GROUPS])
        dataset = _mendable(
            own,
            lambda: fgvar.measure(
                estimators,
                problem,
                draws=self.draws,
                seed=self.seed,
                chunk=self.chunk,
                route=self.route,
                paired=self.paired,
            ),
        )
        configuration = replace(self, **described, out=None, output=Output())
        named = described if self.problem else {"network": self.network, **described}
        dataset.attrs |= {**named, "configuration": repr(configuration)}
        failure = _unwritten("--out", self.out, lambda place: fgvar.save(dataset, place))
        return CommandResult(to_text(dataset, self.layer), rows(dataset, self.layer), 1 if failure else 0, failure)

    def _own_problem(self) -> tuple["fgvar.Problem", dict[str, Any]]:
        """The problem that is named, and its name without the path of a machine."""
        from fgvar.testing.load import load_problem

        brought = ("network", "blocks", "patches", "channels", "groups", "data", "batch", "device")
        defaults = {field.name: field.default for field in fields(self)}
        if twice := [name for name in brought if getattr(self, name) != defaults[name]]:
            raise ValueError(f"--problem brings its own network, batch and device; leave out --{twice[0]}")
        return load_problem(str(self.problem)), {"problem": Path(str(self.problem)).name}

    def _image_problem(self) -> tuple["fgvar.Problem", dict[str, Any]]:
        """A preset on a batch of images, and where these are from."""
        import fgvar

        images = fgvar.data.load(self.data)
        device = _device(self.device)
        batch = images.sample(self.batch, seed=self.seed, device=device)
        return fgvar.Problem(self._network(images).to(device), "cross_entropy", batch), {"data": images.name}

    def _network(self, images: "Images") -> "fgvar.networks.LocalMixer":
        import fgvar

        sizes = {name: getattr(self, name) for name in ("blocks", "patches", "channels", "groups")}
        return fgvar.networks.LocalMixer.preset(
            self.network,
            image_shape=images.image_shape,
            classes=images.classes,
            seed=self.seed,
            **{name: size for name, size in sizes.items() if size is not None},
        )


@dataclass(frozen=True)
class Check:
    """Prove or refute an estimator by fgvar's checks; the exit status is 1 where one failed, or could not decide.

    Yours is module:name or path/to/file.py:name, where the name is that of an estimator, of a class or function that
    makes one without arguments, or of a function of (problem, generator).
    """

    estimator: tyro.conf.Positional[str | None] = None
    """Your own, or the name of a scheme."""
    gallery: bool = False
    """In place of an estimator: the defects of published code, what catches each, and how large its bias is."""
    problem: str | None = None
    """Your own in place of the four default ones: path/to/file.py:name or module:name, of a function that returns a
    Problem; best small and in float64."""
    checks: tuple[str, ...] = ()
    """Some of the checks, by name. Default: all."""
    level: float = 1e-6
    """Nominal false-alarm rate of the whole report."""
    draws: int | Literal["enough"] | None = None
    """Of each verdict that is drawn; "enough": as many as decide, by a pilot. Default: 8192."""
    report: Path | None = None
    """Write it as one self-contained HTML page, too."""
    output: Printed = Output()

    def answer(self) -> CommandResult:
        import fgvar
        from fgvar.testing.load import load_estimator, load_problem

        if (self.estimator is None) != self.gallery:
            raise ValueError("check takes an estimator (a name of `fgvar schemes`, or yours), or --gallery alone")
        if self.estimator is None:
            if self.report is not None:
                raise ValueError("--report is of one estimator; leave it or --gallery out")
            found = fgvar.testing.gallery()
            return CommandResult(format_table(found), found)
        if self.report is not None:  # before any computing
            from fgvar.pages.page import require_page

            require_page(self.report)
        report = fgvar.testing.check_estimator(
            load_estimator(self.estimator),
            {self.problem.rpartition(":")[2]: load_problem(self.problem)} if self.problem else None,
            checks=self.checks or None,
            level=self.level,
            draws=self.draws,
        )
        rows = [{"check": r.check, "problem": r.problem, "outcome": r.outcome, "note": r.note} for r in report.rows]
        title = Path(self.estimator).name
        failure = _unwritten("--report", self.report, lambda place: _page(report, title, place))
        return CommandResult(str(report), rows, 0 if report.passed and not failure else 1, failure)


def _page(report: Any, title: str, place: Path) -> Path:
    from fgvar import pages

    return pages.write(pages.of_report(report, title), place)


def _unwritten(option: str, place: Path | None, write: Callable[[Path], Path]) -> str:
    """Why the file that an option names could not be written: the answer is worth more than its file."""
    if place is None:
        return ""
    try:
        print(write(place))
    except OSError as error:
        return f"{option}: {error.strerror or error}"
    return ""


def _device(name: str) -> Any:
    from fgvar.training.train import choose_device

    return choose_device(name)


def _mendable(own: list[str], measure: Callable[[], Any]) -> Any:
    """Its dataset; what somebody's estimator raises, or that memory is short, is theirs to mend."""
    from fgvar.testing.load import where

    try:
        return measure()
    except (ValueError, ArithmeticError):
        raise
    except (MemoryError, RuntimeError) as error:
        if "memory" in str(error):
            raise ValueError(f"{where(error)}; give a smaller --chunk, --batch or network") from error
        if not own:
            raise
        raise ValueError(f"{own[0]} raised {where(error)}; `{PROG} check` tells more") from error

"""The command line: ``fgvar schemes``, ``measure``, ``check`` and ``open``.

Options are read before torch is imported, so that help is instant. Each command returns a `CommandResult`, which
`main` prints as text, tab-separated or as JSON. Exit status: 0; 1 where a check failed or could not decide, or a file
could not be written after the work; 2 for what the user can mend, in one line.
"""

import contextlib
import functools
import io
import operator
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fgvar.errors import unknown
from fgvar.measurement.text_tables import CommandResult, format_table, to_json, to_markdown, to_tsv, visible

if TYPE_CHECKING:
    from fgvar.data.images import Images
    from fgvar.networks import LocalMixer

PROG = "fgvar"
ABOUT = "How good is a gradient estimator? Bias, variance and cosine to the true gradient."


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
    """Measure bias, variance and cosine of schemes on a freshly initialised LocalMixer."""

    scheme: tuple[str, ...] = ("FG-W", "FG-A", "LG-FG-W", "LG-FG-A")
    """Names of `fgvar schemes`, or your own: module:name or path/to/file.py:name."""
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
    """Of the weights, the batch and the noise."""
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
        from fgvar.measurement.report import rows, to_text
        from fgvar.storage.atomic import require_place
        from fgvar.testing.load_estimator import load_estimator

        if not self.scheme:
            raise ValueError("--scheme names none; give one or more, as --scheme LG-FG-A FG-A")
        if twice := [name for name in self.scheme if self.scheme.count(name) > 1]:
            raise ValueError(f"--scheme names {twice[0]} twice; name it once")
        if self.out is not None:  # before any computing
            require_place(self.out)
        estimators = {name: load_estimator(name) for name in self.scheme}
        images = fgvar.data.load(self.data)
        device = _device(self.device)
        batch = images.sample(self.batch, seed=self.seed, device=device)
        problem = fgvar.Problem(self._network(images).to(device), "cross_entropy", batch)
        dataset = _mendable(
            [name for name in self.scheme if ":" in name],
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
        configuration = replace(self, data=images.name, out=None, output=Output())
        dataset.attrs |= {"network": self.network, "data": images.name, "configuration": repr(configuration)}
        answer = CommandResult(to_text(dataset, self.layer), rows(dataset, self.layer))
        if self.out is not None:
            try:
                print(fgvar.save(dataset, self.out))
            except OSError as error:  # the result is worth more than its file
                return answer._replace(status=1, failure=f"--out: {error.strerror or error}")
        return answer

    def _network(self, images: "Images") -> "LocalMixer":
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

    estimator: tyro.conf.Positional[str]
    """Your own, or the name of a scheme."""
    checks: tuple[str, ...] = ()
    """Some of the checks, by name. Default: all."""
    level: float = 1e-6
    """Nominal false-alarm rate of the whole report."""
    draws: int | Literal["enough"] | None = None
    """Of each verdict that is drawn; "enough": as many as decide, by a pilot. Default: 8192."""
    output: Printed = Output()

    def answer(self) -> CommandResult:
        import fgvar
        from fgvar.testing.load_estimator import load_estimator

        report = fgvar.testing.check_estimator(
            load_estimator(self.estimator), checks=self.checks or None, level=self.level, draws=self.draws
        )
        rows = [{"check": r.check, "problem": r.problem, "outcome": r.outcome, "note": r.note} for r in report.rows]
        return CommandResult(str(report), rows, 0 if report.passed else 1)


@dataclass(frozen=True)
class Open:
    """Sum up a dataset: a measurement, training runs (the last epoch and probe), or any other netCDF file."""

    dataset: tyro.conf.Positional[Path]
    """The netCDF file."""
    layer: tuple[str, ...] = ()
    """Parameters by name, "perturbed" (all that schemes estimate; the default), "total", or "all" of these."""
    output: Printed = Output()

    def answer(self) -> CommandResult:
        import fgvar
        from fgvar.measurement.report import provenance_line, rows, to_text

        dataset = fgvar.open_dataset(self.dataset)
        return CommandResult(
            f"{provenance_line(dataset)}\n\n{to_text(dataset, self.layer)}".lstrip(), rows(dataset, self.layer)
        )


Command = Schemes | Measure | Check | Open
COMMANDS = {"schemes": Schemes, "measure": Measure, "check": Check, "open": Open}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the status to exit with."""
    try:
        command = _parsed(sys.argv[1:] if arguments is None else arguments)
        # What anybody's module prints goes to stderr: stdout is for the answer.
        with contextlib.redirect_stdout(sys.stderr):
            answer = command.answer()
    except (ValueError, OSError, ImportError, ArithmeticError) as error:  # what the user can mend
        print(f"{PROG}: {visible(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROG}: stopped", file=sys.stderr)
        return 130
    try:
        print(command.output.form(answer), flush=True)
    except BrokenPipeError:  # as head closes it: nobody reads on, not even the interpreter's last flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if answer.failure:
        print(f"{PROG}: {visible(answer.failure)}", file=sys.stderr)
    return answer.status


def _parsed(arguments: Sequence[str]) -> Command:
    """The command that these arguments ask for; help ends the program."""
    first = arguments[0] if arguments else ""
    if first in COMMANDS:
        return _options(COMMANDS[first], f"{PROG} {first}", arguments[1:])
    if first.startswith("-"):  # help on all commands, or an option too early
        every = (Annotated[kind, tyro.conf.subcommand(name)] for name, kind in COMMANDS.items())
        return _options(functools.reduce(operator.or_, every), PROG, arguments, description=ABOUT)
    got = unknown("command", first, COMMANDS) if first else f"no command; give one of {', '.join(COMMANDS)}"
    raise ValueError(f"{got}; see {PROG} --help")


def _options(kind: Any, prog: str, arguments: Sequence[str], **about: Any) -> Command:
    """The options of a command; what tyro refuses is one line."""
    markers = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone, tyro.conf.PositionalMetavarFromFieldName)
    refusal = io.StringIO()
    try:
        with contextlib.redirect_stderr(refusal):
            found: Any = tyro.cli(kind, prog=prog, args=list(arguments), config=markers, **about)
    except SystemExit as stopped:
        if not stopped.code:
            raise
        raise ValueError(f"{_one_line(refusal.getvalue())}; see {prog} --help") from None
    command: Command = found
    if command.output.plain + command.output.json + command.output.markdown > 1:
        raise ValueError("--plain, --json and --markdown are forms of one output; give one of them")
    return command


def _one_line(refusal: str) -> str:
    """What tyro says in sections, in a box or under a title; the help of single options, further in, is left out."""
    boxed = "│" in refusal
    lines = [line.strip("│") for line in refusal.splitlines() if not line.startswith(("╭", "╰"))][0 if boxed else 2 :]
    shown = " ".join(line for line in lines if line[:8].strip())
    sections = [" ".join(section.split()) for section in re.split("[─-]{3,}", shown)]
    ours = [s for s in sections if s and not s.startswith(("Argument helptext", "For full helptext"))]
    return "; ".join(ours)


def _device(name: str) -> Any:
    from fgvar.training.train import choose_device

    return choose_device(name)


def _mendable(own: list[str], measure: Callable[[], Any]) -> Any:
    """Its dataset; what somebody's estimator raises, or that memory is short, is theirs to mend."""
    from fgvar.testing.load_estimator import where

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

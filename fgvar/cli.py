"""The command line: reads ``fgvar schemes``, ``measure``, ``check``, ``open``, ``plot`` or ``report``, and prints.

Each command returns a `CommandResult`, which `main` prints as text, tab-separated or as JSON. Exit status: 0; 1 where
a check failed or could not decide, or a file could not be written after the work; 2, and one line, for what the user
can mend.
"""

import contextlib
import functools
import io
import operator
import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from fgvar.commands import PROG, Check, Measure, Schemes
from fgvar.dataset_commands import Open, Plot, Report
from fgvar.errors import unknown
from fgvar.measurement.text_tables import visible

ABOUT = "How good is a gradient estimator? Bias, variance and cosine to the true gradient."

Command = Schemes | Measure | Check | Open | Plot | Report
COMMANDS = {"schemes": Schemes, "measure": Measure, "check": Check, "open": Open, "plot": Plot, "report": Report}


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

"""Docstrings of public names: which names there are, and what each docstring says, in parts."""

import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import fgvar

OTHERS = ("plot", "measurement", "training", "sweeps", "storage", "pages")
SECTIONS = ("Args", "Attributes", "Raises", "Source", "Example")
ENTRY = re.compile(r"^(\*{0,2}\w[\w, /]*|[A-Z]\w+(?:, \w+)*): (.*)$")


@dataclass
class Parts:
    """What one docstring says.

    Attributes:
        identity: the first sentence or formula.
        text: paragraphs below it.
        entries: section → name → words, of Args, Attributes and Raises.
        source: where it comes from.
        example: lines for a Python prompt.
    """

    identity: str = ""
    text: list[str] = field(default_factory=list)
    entries: dict[str, dict[str, str]] = field(default_factory=dict)
    source: str = ""
    example: str = ""


@dataclass(frozen=True)
class Name:
    """A public name: where it is imported from, and the object."""

    module: str
    name: str
    value: Any

    @property
    def parts(self) -> Parts:
        return parsed(inspect.getdoc(self.value) or "")

    @property
    def callable(self) -> bool:
        return inspect.isclass(self.value) or inspect.isroutine(self.value)

    @property
    def signature(self) -> str:
        try:
            found = str(inspect.signature(self.value)) if self.callable else ""
        except (TypeError, ValueError):  # of protocols and of what is made in C
            found = ""
        return re.sub(r"<([\w.]+)[^<>]* at 0x[0-9a-f]+>", r"\1", found.replace("typing.", ""))


def modules() -> list[str]:
    """Modules with public names, fgvar first."""
    every = dict.fromkeys((*fgvar._SUBJECTS, *fgvar._MODULES, *OTHERS))
    return ["fgvar", *(f"fgvar.{name}" for name in every)]


def names(module: str) -> Iterator[Name]:
    """The public names of a module that are no modules."""
    found = importlib.import_module(module)
    for name in found.__all__:
        if not name.startswith("__") and not inspect.ismodule(value := getattr(found, name)):
            yield Name(module, name, value)


def parsed(text: str) -> Parts:
    """A docstring in parts: paragraphs, and sections of entries, a source, an example.

    Example:
        >>> parsed("Twice.\\n\\nArgs:\\n    x: a number.\\n\\nSource: me.").entries
        {'Args': {'x': 'a number.'}}
    """
    first, *blocks = re.split(rf"\n(?=(?:{'|'.join(SECTIONS)}):)|\n\n", text.strip())
    parts, section = Parts(" ".join(first.split())), ""
    for block in blocks:
        head, _, rest = block.partition(":")
        section = head if head in SECTIONS else section if block.startswith((" ", "\n")) else ""
        body = rest if head in SECTIONS else block
        if section == "Example":
            parts.example += inspect.cleandoc("\n" + body.strip("\n")) + "\n"
        elif section == "Source":
            parts.source += " ".join(body.split())
        elif section:
            _entries(parts.entries.setdefault(section, {}), inspect.cleandoc("\n" + body.strip("\n")))
        else:
            parts.text.append(block)
    return parts


def _entries(found: dict[str, str], text: str) -> None:
    """Lines ``name: words``, which go on in indented lines."""
    for line in text.splitlines():
        if (entry := ENTRY.match(line)) is not None:
            found[entry[1]] = entry[2]
        elif found:
            found[[*found][-1]] += " " + line.strip()
        else:
            found[""] = line.strip()

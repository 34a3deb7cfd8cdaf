"""Docstrings of all public names: what each one lacks of identity, arguments, errors, source and example."""

import inspect
import re
from collections.abc import Iterable

import pytest

import fgvar
from tests.docs.docstrings import Name, modules, names

WORDS = {f"fgvar.{subject}" for subject in fgvar._SUBJECTS}  # what is somebody's has its source

# Elementary definitions without one origin, and what is this library's own.
NOBODYS = {
    "fgvar.noise": ("Sparse", "Bernoulli"),
    "fgvar.oracles": ("Replay",),
    "fgvar.combine": ("ShuffledCredit",),
    "fgvar.controls": ("IsotropicNull",),
    "fgvar.sampling": ("Everything", "Uniform"),
    "fgvar.points": ("Here",),
    "fgvar.targets": ("TargetOf", "Masked", "hessian"),
    "fgvar.transforms": ("Mask",),
}
# The parts of `measure`, which pass each other on, and say what they are in their classes; some without an example.
PARTS = {"fgvar.measurement": ("init", "absorb", "bias_test", "snr", "variance", "differences", "Sums")}
BARE = {"fgvar.measurement": ("Measured", "Drawn", "Block", "Moments", "absorb", *PARTS["fgvar.measurement"][2:])}


def raises(one: Name) -> bool:
    """Is an error raised by its own code, as it is called or made?"""
    if not inspect.isclass(one.value):
        return "raise " in inspect.getsource(one.value)
    made = (one.value.__dict__.get(name) for name in ("__init__", "__post_init__"))
    own = (found for found in made if inspect.isfunction(found) and "fgvar" in found.__code__.co_filename)
    return any(
        "raise " in inspect.getsource(found) for found in own if not found.__code__.co_filename.startswith("<")
    )


def lacks(one: Name) -> set[str]:
    """What its docstring does not say."""
    doc, parts = inspect.getdoc(one.value) or "", one.parts
    said = set(re.findall(r"\w+", doc))
    taken = set() if inspect.isclass(one.value) and one.value.__init__ is object.__init__ else set(_parameters(one))
    found = {f"argument {name}" for name in taken - said}
    found |= set() if parts.identity else {"identity"}
    found |= {"errors"} if raises(one) and "Raises" not in parts.entries else set()
    found |= set() if parts.example else {"example"}
    own = one.module in WORDS and not re.search(r"\b(19|20)\d\d\b|Source:", doc)
    return found | ({"source"} if own else set())


def allowed(one: Name) -> set[str]:
    """What it may lack, and has to lack: a list that is too long is shortened."""
    found = {"source"} if one.name in NOBODYS.get(one.module, ()) else set()
    found |= {"example"} if one.name in BARE.get(one.module, ()) else set()
    return found


def without_arguments(found: Iterable[str], one: Name) -> set[str]:
    """Those of a part of `measure` are classes that say what they are."""
    named = one.name in PARTS.get(one.module, ())
    return {what for what in found if not (named and what.startswith("argument"))}


@pytest.mark.parametrize("module", modules())
def test_public_names_say_all_that_a_reader_needs(module: str) -> None:
    every = [one for one in names(module) if one.callable]
    found = {one.name: without_arguments(lacks(one), one) for one in every}
    assert {name: lack for name, lack in found.items() if lack} == {
        one.name: may for one in every if (may := allowed(one))
    }


def test_what_a_docstring_lacks_is_seen() -> None:
    def silent(x: int) -> int:
        raise ValueError(x)

    assert lacks(Name("fgvar.noise", "silent", silent)) == {"identity", "argument x", "errors", "example", "source"}


def _parameters(one: Name) -> set[str]:
    try:
        return set(inspect.signature(one.value).parameters) - {"args", "kwargs", "self"}
    except ValueError:  # of an exception
        return set()

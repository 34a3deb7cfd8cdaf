"""Identity: texts and hashes that tell one problem or run from another, and are the same in every process."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import types
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from fgvar.bytecode import globals_used, instructions

if TYPE_CHECKING:
    from fgvar.problem import Problem


def described(thing: object) -> str:
    """What an object says of itself, without where it happens to lie in memory."""
    if isinstance(thing, str):
        return thing
    if isinstance(thing, types.FunctionType):
        return f"{thing.__module__}.{thing.__qualname__}"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(thing))  # addresses differ from process to process


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in tensors.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        if value.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(value):  # which have no values
            continue
        with torch._C._DisableFuncTorch():  # an error inside of a vmap or grad may tell what it is about
            # The bytes themselves, so that −0 and NaN count, and every dtype has them.
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def behaviour(thing: object) -> str:
    """A hash of what a function, a module or another object computes by, as far as that can be read.

    Of functions their code, defaults, what they close over, and the constants and functions of their module that
    they name; of modules their structure, the code of each ``forward``, parameters and buffers; and of any object the
    numbers, texts, tensors, functions and containers of them that it has as attributes. Other Python versions may
    compile the same source to other code.
    """
    digest = hashlib.blake2b(digest_size=6)
    for part in _parts(thing, frozenset(), {}):
        digest.update(f"{part}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()


_PLAIN = (str, bytes, int, float, complex, type, torch.dtype, np.generic, types.NoneType)
_UNORDERED = (dict, set, frozenset)
_DATA = (tuple, list, *_UNORDERED, Tensor, np.ndarray)
# Of other attributes (caches, configurations, locks) nothing says that they stay as they are during a run.
_READ = (*_PLAIN, *_DATA, types.FunctionType, types.MethodType, functools.partial, nn.Module)
_CONSTANTS = (str, bytes, int, float, complex, *_DATA)


def _parts(thing: object, path: frozenset[int], functions: dict[int, int]) -> Iterator[str]:
    """What `behaviour` hashes. What holds itself is not entered again: ``path`` are those that hold this thing.

    Nor is one of the ``functions`` that have been entered before, as of a module all may use the same few.
    """
    if isinstance(thing, _PLAIN):
        yield f"{type(thing).__name__} {thing!r}"
        return
    if isinstance(thing, Tensor):
        yield fingerprint({"": thing})
        return
    yield type(thing).__name__
    if isinstance(thing, types.FunctionType):
        if id(thing) in functions:
            yield f"again {functions[id(thing)]}"
            return
        functions[id(thing)] = len(functions)
    elif id(thing) in path:
        return
    path |= {id(thing)}
    if isinstance(thing, _UNORDERED):  # sets have another order in every process
        each = thing.items() if isinstance(thing, dict) else thing
        yield from sorted("\n".join(_parts(item, path, functions.copy())) for item in each)
        return
    for part in _inside(thing):
        yield from _parts(part, path, functions)


def _inside(thing: object) -> Iterator[object]:
    """What a function, a container, a module or another object is made of."""
    if isinstance(thing, tuple | list):
        yield from thing
    elif isinstance(thing, np.ndarray):
        yield from (str(thing.dtype), thing.shape, thing.tolist() if thing.dtype.hasobject else thing.tobytes())
    elif isinstance(thing, types.FunctionType):
        yield from (described(thing), instructions(thing), thing.__defaults__, thing.__kwdefaults__)
        for cell in thing.__closure__ or ():
            with contextlib.suppress(ValueError):  # of a name that has no value yet
                yield cell.cell_contents
        yield _lasting(globals_used(thing, _CONSTANTS))
    elif isinstance(thing, types.MethodType):
        yield from (thing.__func__, thing.__self__)
    elif isinstance(thing, functools.partial):
        yield from (thing.func, thing.args, thing.keywords)
    else:
        yield from (described(thing), _attributes(thing))
        if isinstance(thing, nn.Module):
            for name, module in thing.named_modules():
                yield from (name, type(module).forward, _attributes(module))
            yield fingerprint({**dict(thing.named_parameters()), **dict(thing.named_buffers())})


def _lasting(named: dict[str, object]) -> dict[str, object]:
    """Without data of a module's own, which may be a cache."""
    return {k: v for k, v in named.items() if not (k.startswith("_") and isinstance(v, _DATA))}


def _attributes(thing: object) -> dict[str, object]:
    every = getattr(thing, "__dict__", {})
    return {k: v for k, v in every.items() if not k.startswith("_") and isinstance(v, _READ)}


def of_problem(problem: Problem) -> str:
    """Network, loss and sizes, and a hash of the network's own text and of all tensors."""
    network = problem.network.skeleton
    tensors = problem.tensors()
    if problem.origin is not None:  # probabilities of samplers are those there
        tensors |= {f"{name} of the origin": value for name, value in problem.origin.tensors().items()}
    digest = hashlib.blake2b(f"{described(network)} {fingerprint(tensors)}".encode(), digest_size=6).hexdigest()
    loss = getattr(problem.loss_function, "__name__", described(problem.loss_function)).lstrip("_")
    numbers = sum(p.numel() for p in problem.params.values())
    return (
        f"<{type(problem).__name__} {type(network).__name__}, {loss}, {problem.batch_size} examples, "
        f"{numbers} numbers, {digest}>"
    )

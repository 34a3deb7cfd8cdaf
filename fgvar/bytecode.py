"""Bytecode: a function's instructions and what they use of its module, for hashes that tell computations apart."""

from types import CodeType, FunctionType


def instructions(function: FunctionType) -> str:
    """Bytecode and constants of a function and of those within it, without its docstring: the same in every process.

    Example:
        >>> instructions(lambda x: x + 1) == instructions(lambda x: x + 2)
        False
    """
    return _instructions(function.__code__, function.__doc__)


def _instructions(code: CodeType, doc: str | None = None) -> str:
    constants = []
    for each in code.co_consts:
        if isinstance(each, CodeType):
            constants.append(_instructions(each))
        elif isinstance(each, frozenset):
            constants.append(repr(sorted(map(repr, each))))  # its order is another one in every process
        elif each is not doc:
            constants.append(repr(each))
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def globals_used(function: FunctionType, constants: tuple[type, ...]) -> dict[str, object]:
    """What a function, or one within it, names of its module: constants of these types, and the module's functions.

    Example:
        >>> globals_used(globals_used, (str,))
        {'_names': <function _names at 0x...>}
    """
    found = {}
    for name in sorted(_names(function.__code__) & function.__globals__.keys()):
        value = function.__globals__[name]
        ours = isinstance(value, FunctionType) and value.__module__ == function.__module__
        if ours or isinstance(value, constants):
            found[name] = value
    return found


def _names(code: CodeType) -> set[str]:
    """All names that it uses, those of attributes among them."""
    return set(code.co_names).union(*(_names(each) for each in code.co_consts if isinstance(each, CodeType)))

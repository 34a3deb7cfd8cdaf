"""Bytecode: what a function uses of its module, for hashes that tell one computation from another."""

from types import CodeType, FunctionType


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

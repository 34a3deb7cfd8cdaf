"""Tables for print: a pandas frame of what is written in its cells, as Markdown and as LaTeX.

Columns with two levels (the second may repeat) have the first level as a heading over several columns.
"""

import re
import unicodedata
from itertools import groupby

import pandas as pd

# Signs that no text font of LaTeX has → what it needs no further package for.
SIGNS = {
    "→": "rightarrow", "←": "leftarrow", "↔": "leftrightarrow", "↦": "mapsto", "⇒": "Rightarrow", "↑": "uparrow",
    "↓": "downarrow", "±": "pm", "∓": "mp", "×": "times", "·": "cdot", "⊙": "odot", "⊗": "otimes", "⊕": "oplus",
    "∘": "circ", "∗": "ast", "‖": "|", "∥": "parallel", "⟂": "perp", "⊥": "perp", "∇": "nabla", "∂": "partial",
    "∑": "sum", "∏": "prod", "∫": "int", "√": "surd", "∞": "infty", "≤": "le", "≥": "ge", "≠": "ne", "≈": "approx",
    "≡": "equiv", "∼": "sim", "∝": "propto", "≪": "ll", "≫": "gg", "∈": "in", "∉": "notin", "∀": "forall",
    "∃": "exists", "∅": "emptyset", "∩": "cap", "∪": "cup", "⊂": "subset", "⊆": "subseteq", "⟨": "langle",
    "⟩": "rangle", "ℓ": "ell", "†": "dagger", "★": "star",
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta", "θ": "theta",
    "ι": "iota", "κ": "kappa", "λ": "lambda", "μ": "mu", "µ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho",
    "σ": "sigma", "ς": "varsigma", "τ": "tau", "υ": "upsilon", "φ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega",
    "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma", "Φ": "Phi",
    "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
TEX = {sign: rf"$\{name}$" for sign, name in SIGNS.items()}
TEX |= {"–": "--", "—": "---", "−": "$-$", "ĝ": r"$\hat g$", "✓": "yes", "✗": "no", "\N{NO-BREAK SPACE}": "~"}
TEX |= {one: "\\" + one for one in "&%$#_{}"}
TEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
# Other signs in LaTeX's oldest font encoding, which is the default; and two hyphens are a dash.
TEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "`": r"\textasciigrave{}", "--": "-{}-"}
SPECIAL = re.compile("|".join(map(re.escape, TEX)) + "|[^ -~]")
NUMBER = re.compile(r"([-−]?\d+)(?:\.(\d+))?(?:e([+-]\d+))?(?: (.+))?")  # with what stands behind it


def markdown(frame: pd.DataFrame) -> str:
    r"""A table of GitHub's Markdown; rows' names are code, and the first of several columns bears their heading.

    Example:
        >>> print(markdown(pd.DataFrame({"cost": ["2.9"]}, index=["a|b"])))
        | | cost |
        |---|---|
        | `a\|b` | 2.9 |
    """
    heads, group = [], None
    for column in frame.columns:
        first, *others = column if isinstance(column, tuple) else (column,)
        heads.append(" ".join(others if first == group and others else (first, *others)))
        group = first
    lines = [["", *heads], *([f"`{name}`", *row] for name, row in zip(frame.index, frame.values, strict=True))]
    head, *rest = (
        "|" + "|".join(f" {text} " if text else " " for text in map(_in_markdown, line)) + "|" for line in lines
    )
    return "\n".join([head, "|---|" + "---|" * len(heads), *rest])


def _in_markdown(text: str) -> str:
    return str(text).replace("|", r"\|")


def latex(frame: pd.DataFrame, *, siunitx: bool = False) -> str:
    r"""A ``tabular`` with the rules of the package booktabs, which is all it needs.

    Greek letters and mathematical signs become commands, ✓ and ✗ "yes" and "no". Letters of other scripts than Latin
    stay as they are: for them take XeLaTeX or LuaLaTeX, with a font that has them.

    Args:
        frame: of text.
        siunitx: numbers in columns ``S[table-format=…]`` of that package, which stand by their points, with what is
            written behind a number, as its interval, in a column beside it.

    Example:
        >>> print(latex(pd.DataFrame({"variance": ["16.6 [15.2, 18.9]", "–"]}, index=["A_1", "B"]), siunitx=True))
        \begin{tabular}{lS[table-format=2.1]@{\,}l}
        \toprule
         & \multicolumn{2}{c}{variance} \\
        \midrule
        A\_1 & 16.6 & [15.2, 18.9] \\
        B & {--} &  \\
        \bottomrule
        \end{tabular}
        <BLANKLINE>
    """
    columns = [tuple(map(str, column)) if isinstance(column, tuple) else (str(column),) for column in frame.columns]
    cells = [[str(text) for text in frame.iloc[:, i]] for i in range(frame.shape[1])]
    numbers = [siunitx and any(NUMBER.fullmatch(text) for text in its) for its in cells]
    widths = [
        1 + any(_behind(text) for text in its) if number else 1 for its, number in zip(cells, numbers, strict=True)
    ]
    kinds = [
        _format(its) + r"@{\,}l" * (width - 1) if number else "r"
        for its, number, width in zip(cells, numbers, widths, strict=True)
    ]
    lines = [r"\begin{tabular}{l" + "".join(kinds) + "}", r"\toprule"]
    lines += [_heads(columns, level, widths, numbers) for level in range(len(columns[0]) if columns else 0)]
    lines.append(r"\midrule")
    for row, name in enumerate(frame.index):
        parts = [_name(str(name))]
        for its, number, width in zip(cells, numbers, widths, strict=True):
            parts += _parts(its[row], width) if number else [_escaped(its[row])]
        lines.append(f"{' & '.join(parts)} \\\\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _heads(columns: list[tuple[str, ...]], level: int, widths: list[int], numbers: list[bool]) -> str:
    """A line of headings: over several columns where they have one heading and a line of others below."""
    parts = [""]
    last = level == len(columns[0]) - 1
    places = groupby(range(len(columns)), key=lambda i: (columns[i][: level + 1], i if last else -1))
    for _, group in places:
        those = list(group)
        text, across = _escaped(columns[those[0]][level]), sum(widths[i] for i in those)
        if across > 1:
            parts.append(rf"\multicolumn{{{across}}}{{c}}{{{text}}}")
        else:
            parts.append(f"{{{text}}}" if numbers[those[0]] else text)
    return f"{' & '.join(parts)} \\\\"


def _format(texts: list[str]) -> str:
    """The column type that holds these numbers."""
    found = [match for match in map(NUMBER.fullmatch, texts) if match]
    whole, behind = max(len(m[1].lstrip("-−")) for m in found), max(len(m[2] or "") for m in found)
    sign = "-" if any(m[1][0] in "-−" for m in found) else ""
    powers = [m[3] for m in found if m[3]]
    power = f"e{'-' if any(p[0] == '-' for p in powers) else ''}{max(len(p) - 1 for p in powers)}" if powers else ""
    return f"S[table-format={sign}{whole}{f'.{behind}' if behind else ''}{power}]"


def _parts(text: str, width: int) -> list[str]:
    """A number and what stands behind it; what is no number is in braces, which siunitx leaves alone."""
    match = NUMBER.fullmatch(text)
    if match is None:
        return [f"{{{_escaped(text)}}}", *[""] * (width - 1)]
    number = text.partition(" ")[0].replace("−", "-")
    return [number, *([_escaped(_behind(text))] if width > 1 else [])]


def _behind(text: str) -> str:
    match = NUMBER.fullmatch(text)
    return (match[4] or "") if match else ""


def _name(text: str) -> str:
    """Text in the first cell of a row, where a bracket or an asterisk would belong to the rule or row before."""
    return ("{}" if text.startswith(("[", "*")) else "") + _escaped(text)


def _escaped(text: str) -> str:
    """Text as LaTeX shows it."""
    return SPECIAL.sub(lambda found: TEX.get(found[0]) or _raised(found[0]), text)


def _raised(sign: str) -> str:
    """A raised or lowered sign as such; others as they are."""
    kind, _, codes = unicodedata.decomposition(sign).partition(" ")
    if kind not in ("<super>", "<sub>"):
        return sign
    plain = _escaped("".join(chr(int(code, 16)) for code in codes.split()))
    return rf"\text{'super' if kind == '<super>' else 'sub'}script{{{plain}}}"


def number(value: float, error: float = float("nan"), digits: int = 3) -> str:
    """``value ± error`` to so many significant digits, without an error that is NaN; a dash for NaN."""
    if value != value:
        return "–"
    return f"{value:.{digits}g}".replace("-", "−") + (f" ± {error:.2g}" if error == error else "")

"""Documentation as pages: READMEs as they are, and a reference made of the docstrings of all public names.

Run   python -m tests.docs.build [FOLDER]     (make docs; default: build/docs)
writes HTML that needs no network, and exits with 1 where a link leads nowhere.
"""

import re
import shutil
import sys
from html import escape
from pathlib import Path
from urllib.parse import unquote

import jinja2
from markdown_it import MarkdownIt

import fgvar
from tests.docs import formulas
from tests.docs.docstrings import Name, modules, names

ROOT = Path(fgvar.__file__).resolve().parents[1]
READMES = [
    ROOT / "README.md",
    *(p for top in ("fgvar", "studies", "tests") for p in sorted((ROOT / top).rglob("README.md"))),
]
CSS = """
article pre { overflow-x: auto; background: var(--paper-head); padding: 0.75rem; font-size: 0.85rem; }
code { background: var(--paper-head); font-size: 0.9em; }
article p:has(> img) { overflow-x: auto; }
article img { min-width: 34rem; max-width: 100%; height: auto; background: var(--card); }
article table { display: block; overflow-x: auto; }
.formula { fill: currentColor; max-width: 100%; height: auto; margin: 0.5rem 0; display: block; }
.entry { border-top: 1px solid var(--line); margin-top: 2rem; }
.signature, .sentence { white-space: pre-wrap; }
.signature { font-weight: 600; }
dt { font-weight: 600; }
dd { margin: 0 0 0.4rem 1.5rem; max-width: 46.5rem; }
"""


def page_of(path: Path) -> str:
    """The page that shows a README."""
    place = path.parent.relative_to(ROOT).as_posix()
    return "index.html" if place == "." else f"{place.replace('/', '-')}.html"


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


class Docs:
    """The pages of one folder.

    Attributes:
        folder: where they are written.
        broken: links that lead nowhere, with their page.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.broken = folder, list[str]()
        self.pages: dict[str, str] = {}
        self.public = {
            one.name: f"{module}.html#{one.name}" for module in reversed(modules()) for one in names(module)
        }
        own = Path(__file__).parent
        page = (Path(fgvar.__file__).parent / "pages" / "page.css").read_text()
        environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        environment.globals["css"] = page + CSS
        environment.globals["guides"] = [(page_of(path), _heading(path)) for path in READMES]
        environment.globals["modules"] = modules()
        self._template = environment.from_string((own / "docs.html.jinja").read_text())

    def build(self) -> list[str]:
        """Write all pages; return what is broken."""
        for path in READMES:
            self._add(page_of(path), _heading(path), self._guide(path))
        for module in modules():
            self._add(f"{module}.html", module, self._module(module))
        self._add("schemes.html", "Schemes", self._schemes())
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.pages.items():
            (self.folder / name).write_text(text)
            self._check(name, text)
        return self.broken

    def _add(self, name: str, title: str, body: str) -> None:
        self.pages[name] = self._template.render(title=title, body=body)

    # ---- READMEs -----------------------------------------------------------------------------------------------

    def _guide(self, path: Path) -> str:
        """Its HTML, with headings to link to, and links to other READMEs' pages."""
        markdown = MarkdownIt("commonmark").enable("table")
        tokens = markdown.parse(path.read_text())
        for i, token in enumerate(tokens):
            if token.type == "heading_open":
                token.attrSet("id", slug(tokens[i + 1].content))
            for inner in token.children or ():
                for name in ("href", "src"):
                    if link := inner.attrGet(name):
                        inner.attrSet(name, self._moved(path, str(link)))
        return str(markdown.renderer.render(tokens, markdown.options, {}))

    def _moved(self, path: Path, link: str) -> str:
        """Where a README's link leads to among the pages; files are copied beside them."""
        file, _, anchor = link.partition("#")
        if not file or re.match(r"\w+:", link):
            return link
        target = (path.parent / unquote(file)).resolve()
        mark = f"#{anchor}" if anchor else ""
        if target in READMES:
            return page_of(target) + mark
        if target.is_file():
            copy = self.folder / "files" / target.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(target, copy)
            return copy.relative_to(self.folder).as_posix()
        return link  # which the check of all links names

    # ---- reference ---------------------------------------------------------------------------------------------

    def _module(self, module: str) -> str:
        """What it is, and an entry for each of its names."""
        doc = (sys.modules[module].__doc__ or "").strip()
        entries = [self._entry(one) for one in names(module)]
        return f"<h1><code>{module}</code></h1>{self._paragraphs(doc)}" + "".join(entries)

    def _entry(self, one: Name) -> str:
        """Signature, identity, formula, and what the docstring says."""
        found = [f'<section class="entry" id="{one.name}"><h2>{one.name}</h2>']
        found.append(f'<pre class="signature">{escape(one.module)}.{one.name}{escape(one.signature)}</pre>')
        if not one.callable:  # a constant has its type's docstring
            return "".join([*found, f"<pre>{escape(_short(one.value))}</pre></section>"])
        parts = one.parts
        found.append(f"<p>{self._inline(parts.identity)}</p>")
        latex = formulas.WORDS.get(f"{one.module.rpartition('.')[2]}.{one.name}", formulas.WORDS.get(one.name))
        if latex and one.module in WITH_FORMULAS:
            found.append(formulas.typeset(latex, f"{one.name}: {parts.identity}"))
        found += [self._paragraphs(text) for text in parts.text]
        for section, entries in parts.entries.items():
            items = "".join(f"<dt>{escape(k)}</dt><dd>{self._inline(v)}</dd>" for k, v in entries.items())
            found.append(f"<h3>{section}</h3><dl>{items}</dl>")
        found.append(f"<p>Source: {self._inline(parts.source)}</p>" if parts.source else "")
        found.append(f"<h3>Example</h3><pre>{escape(parts.example.strip())}</pre>" if parts.example else "")
        return "".join([*found, "</section>"])

    def _schemes(self) -> str:
        """Every scheme with its formula, the sentence that it stands for, source, cost and bias."""
        found = ["<h1>Schemes</h1>", self._paragraphs(formulas.__doc__.split("\n\n")[1])]
        for one in fgvar.schemes():
            found.append(f'<section class="entry" id="{one.name}"><h2>{one.name}</h2><p>{escape(one.line)}</p>')
            found.append(formulas.typeset(formulas.SCHEMES[one.name], f"{one.name}: {one.line}"))
            found.append(f'<pre class="sentence">{escape(repr(one.estimator))}</pre>')
            facts = {"Source": one.source, "Cost": f"{one.cost} forward passes", "Biased": one.bias_reason or "no"}
            found += [f"<p>{name}: {escape(value)}</p>" for name, value in facts.items()]
            found.append("</section>")
        return "".join(found)

    def _paragraphs(self, text: str) -> str:
        return "".join(f"<p>{self._inline(one)}</p>" for one in text.split("\n\n") if one.strip())

    def _inline(self, text: str) -> str:
        """Code as code, and a public name in backticks as a link to its entry."""

        def marked(found: re.Match[str]) -> str:
            word = found[1]
            link = self.public.get(word.removeprefix("fgvar.").rpartition(".")[2])
            return f'<a href="{link}"><code>{word}</code></a>' if link else f"<code>{word}</code>"

        return re.sub(r"``?([^`]+)``?", marked, escape(text))

    # ---- links -------------------------------------------------------------------------------------------------

    def _check(self, name: str, text: str) -> None:
        """Keep the links of a page that lead to no page, file or anchor."""
        for link in re.findall(r'(?:href|src)="([^"]+)"', text):
            file, _, anchor = unquote(link).partition("#")
            if re.match(r"https?:", link):
                continue
            target = self.pages.get(file or name)
            lost = target is None and not (self.folder / file).is_file()
            if lost or (anchor and target is not None and f'id="{anchor}"' not in target):
                self.broken.append(f"{name}: {link}")


WITH_FORMULAS = {"fgvar", *(f"fgvar.{subject}" for subject in fgvar._SUBJECTS)}


def _heading(path: Path) -> str:
    return path.read_text().partition("\n")[0].removeprefix("# ")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 400 else text[:400] + " …"


def main(folder: Path) -> int:
    """Build, and say what is broken."""
    docs = Docs(folder)
    for link in docs.build():
        print(f"leads nowhere: {link}", file=sys.stderr)
    print(folder / "index.html")
    return 1 if docs.broken else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if sys.argv[1:] else "build/docs")))

"""The public face: names, lazy imports, who may import whom, and the README's examples."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fgvar

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "fgvar").rglob("*.py"))

# Each file may import those before it (testing and the command line may import everything).
ORDER = (
    "fgvar.errors",
    "fgvar.forms",
    "fgvar.memory",
    "fgvar",
    "fgvar.sites",
    "fgvar.dual",
    "fgvar.norms",
    "fgvar.linear",
    "fgvar.weight_norm",
    "fgvar.heads",
    "fgvar.networks.local_mixer",
    "fgvar.networks.mlp",
    "fgvar.networks",
    "fgvar.map",
    "fgvar.skeleton",
    "fgvar.guards",
    "fgvar.criteria",
    "fgvar.conduct",
    "fgvar.network",
    "fgvar.local_heads",
    "fgvar.problem",
    "fgvar.contrastive",
    "fgvar.estimators",
    "fgvar.estimators.noise",
    "fgvar.estimators.structured",
    "fgvar.estimators.losses",
    "fgvar.estimators.credit",
    "fgvar.estimators.spaces",
    "fgvar.estimators.oracles",
    "fgvar.estimators.guesses",
    "fgvar.estimators.subspaces",
    "fgvar.estimators.combine",
    "fgvar.estimators.estimator",
    "fgvar.estimators.feedback",
    "fgvar.estimators.controls",
    "fgvar.estimators.schemes",
    "fgvar.estimators.guess_matrix",
    "fgvar.analysis",
    "fgvar.analysis.lending",
    "fgvar.analysis.draws",
    "fgvar.analysis.cost",
    "fgvar.analysis.credits",
    "fgvar.analysis.jacobians",
    "fgvar.analysis.layers",
    "fgvar.analysis.quadratics",
    "fgvar.analysis.tokens",
    "fgvar.analysis.theory",
    "fgvar.analysis.moments",
    "fgvar.analysis.intervals",
    "fgvar.analysis.sums",
    "fgvar.analysis.statistics",
    "fgvar.analysis.locks",
    "fgvar.analysis.atomic",
    "fgvar.analysis.foreign",
    "fgvar.analysis.files",
    "fgvar.analysis.packing",
    "fgvar.analysis.measured",
    "fgvar.analysis.dataset",
    "fgvar.analysis.rows",
    "fgvar.analysis.exact",
    "fgvar.analysis.drawn",
    "fgvar.analysis.paired",
    "fgvar.analysis.spread",
    "fgvar.analysis.measurement",
    "fgvar.experiments",
    "fgvar.experiments.sources",
    "fgvar.experiments.data",
    "fgvar.experiments.views",
    "fgvar.experiments.schedule",
    "fgvar.experiments.distributed",
    "fgvar.experiments.interrupt",
    "fgvar.experiments.evaluation",
    "fgvar.experiments.gradients",
    "fgvar.experiments.checkpoints",
    "fgvar.experiments.probes",
    "fgvar.experiments.tasks",
    "fgvar.experiments.going",
    "fgvar.experiments.keeping",
    "fgvar.experiments.training",
    "fgvar.experiments.readout",
    "fgvar.experiments.tables",
    "fgvar.experiments.cells",
    "fgvar.experiments.grid",
    "fgvar.experiments.running",
    "fgvar.experiments.process",
    "fgvar.experiments.workers",
    "fgvar.experiments.sweep",
    "fgvar.experiments.options",
    "fgvar.cli",
    "fgvar.__main__",
)
XARRAY = (
    "fgvar.analysis.foreign",
    "fgvar.analysis.files",
    "fgvar.analysis.packing",
    "fgvar.analysis.measured",
    "fgvar.analysis.dataset",
    "fgvar.analysis.rows",
    "fgvar.analysis.measurement",
    "fgvar.experiments.probes",
    "fgvar.experiments.going",
    "fgvar.experiments.training",
    "fgvar.experiments.tables",
    "fgvar.experiments.cells",
    "fgvar.experiments.grid",
    "fgvar.experiments.running",
    "fgvar.experiments.sweep",
)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (submodules & set(ORDER)) or {node.module}
    return found


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_who_may_import_whom(path: Path) -> None:
    name, found = module_name(path), imports(path)
    ours = {other for other in found if other.split(".")[0] == "fgvar"}
    if name.startswith("fgvar.testing"):
        return
    closed = ("hypothesis", "pytest") + (() if name == "fgvar.cli" else ("fgvar.testing",))
    assert not any(other.startswith(closed) for other in found)
    assert name in ORDER, f"{name} has no place in the order of layers yet"
    later = [other for other in ours if other in ORDER and ORDER.index(other) > ORDER.index(name)]
    assert not later, f"{name} imports {later}, which stand above it"
    if name not in XARRAY:
        assert "xarray" not in found


def test_every_public_name_loads_and_is_documented() -> None:
    for name in fgvar.__all__:
        assert getattr(fgvar, name).__doc__, name
    assert set(fgvar.__all__) <= set(dir(fgvar))


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_import_is_lazy() -> None:
    assert run("import fgvar, sys; print('torch' in sys.modules, 'numpy' in sys.modules)").split() == [
        "False",
        "False",
    ]


@pytest.mark.parametrize("study", sorted(path.name for path in (ROOT / "studies").glob("*.py")))
def test_help_of_a_study_needs_no_torch(study: str) -> None:
    code = (
        f"import sys, runpy; sys.argv = ['{study}', '--help']\n"
        f"try: runpy.run_path('studies/{study}', run_name='__main__')\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    assert run(code).split()[-1] == "False"


def test_examples_of_the_readme_run(tmp_path, monkeypatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_nobody_touches_the_global_random_state(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"torch\.(manual_seed|seed|set_rng_state)\(|np\.random\.(seed|rand|randn|normal)\(", text)
    for call in re.findall(r"torch\.rand\w*\([^)]*(?:\)[^)]*)?\)", text):
        assert "generator=" in call or ">>>" in text[: text.index(call)].splitlines()[-1], call

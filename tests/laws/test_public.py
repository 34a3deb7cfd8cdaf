"""The public face: names, lazy imports and who may import whom."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import fgvar

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "fgvar").rglob("*.py"))

PLOT = (
    "", ".looks", ".venues", ".sheet", ".files", ".drawing", ".intervals", ".datasets", ".series", ".theory_lines",
    ".limits", ".marks", ".panel", ".by_layer", ".runs", ".over_training", ".ranked", ".swept", ".along_axes",
    ".bias_variance", ".draw_laws", ".check_chart", ".kinds_of", ".words", ".captions_of_measurements",
    ".captions_over_axes", ".captions", ".from_file",
)  # fmt: skip
TRAINING = (
    "", ".distributed", ".evaluation", ".gradients", ".interrupt", ".noise_ahead", ".objectives", ".probes",
    ".schedule", ".loop", ".checkpoint", ".train", ".linear_probe",
)  # fmt: skip
SWEEPS = (
    "", ".keys", ".cells", ".grid", ".arguments", ".local", ".cluster", ".scratch", ".sweep",
)  # fmt: skip
THEORY = (
    ".credit_vectors", ".site_jacobians", ".linear_forms", ".linear_layers", ".activity_ratio", ".quadratic_forms",
    ".commuted", ".applicability", ".perturbation", ".stochastic", ".sampled_sums", ".closed_forms", "",
)  # fmt: skip
# Each file may import those before it.
ORDER = (
    "fgvar.errors",
    "fgvar.lazy",
    "fgvar.allocator",
    "fgvar.bytecode",
    "fgvar.identity",
    "fgvar",
    "fgvar.measurement.text_tables",
    "fgvar.measurement.html_tables",
    *(f"fgvar.storage{name}" for name in ("", ".foreign", ".locks", ".atomic", ".packing")),
    "fgvar.nn",
    "fgvar.nn.failures",
    "fgvar.nn.stacking",
    "fgvar.nn.forward_mode",
    "fgvar.nn.structures",
    "fgvar.nn.recurrent",
    "fgvar.nn.layers",
    "fgvar.nn.embeddings",
    "fgvar.nn.purity",
    "fgvar.nn.traits",
    "fgvar.nn.batch_axis",
    "fgvar.nn.site_choice",
    "fgvar.nn.sites",
    "fgvar.nn.terms",
    "fgvar.nn.heads",
    "fgvar.nn.reach",
    "fgvar.nn.forward_pass",
    "fgvar.nn.skeleton",
    "fgvar.nn.instrumented",
    "fgvar.networks.linear_chain",
    "fgvar.networks.local_mixer",
    "fgvar.networks.mlp",
    "fgvar.networks.residual",
    "fgvar.problem_checks",
    "fgvar.nn.local_heads",
    "fgvar.loss_functions",
    "fgvar.dry_run",
    "fgvar.problem",
    "fgvar.contrastive",
    "fgvar.estimators",
    "fgvar.estimators.losses",
    "fgvar.estimators.loss_terms",
    "fgvar.estimators.credit",
    "fgvar.estimators.factors",
    "fgvar.estimators.lengths",
    "fgvar.estimators.random_streams",
    "fgvar.estimators.declared",
    "fgvar.estimators.laws",
    "fgvar.estimators.randomness",
    "fgvar.estimators.protocol",
    "fgvar.networks.gradinit",
    "fgvar.networks",
    "fgvar.estimators.noise",
    "fgvar.estimators.choices",
    "fgvar.estimators.spaces",
    "fgvar.estimators.activity_space",
    "fgvar.estimators.weight_space",
    "fgvar.estimators.combine",
    "fgvar.estimators.guesses",
    "fgvar.estimators.oracles",
    "fgvar.estimators.estimator",
    "fgvar.estimators.feedback",
    "fgvar.estimators.structured_noise",
    "fgvar.estimators.controls",
    "fgvar.estimators.subspace_guesses",
    "fgvar.stochastic",
    "fgvar.stochastic.populations",
    "fgvar.stochastic.scores",
    "fgvar.stochastic.sampling",
    "fgvar.stochastic.draw",
    "fgvar.stochastic.inclusion",
    "fgvar.stochastic.union",
    "fgvar.stochastic.weighing",
    "fgvar.stochastic.past",
    "fgvar.stochastic.points",
    "fgvar.stochastic.transforms",
    "fgvar.stochastic.compression",
    "fgvar.stochastic.masks",
    "fgvar.stochastic.carriers",
    "fgvar.stochastic.retained",
    "fgvar.stochastic.sentence",
    "fgvar.stochastic.streams",
    "fgvar.stochastic.history",
    "fgvar.stochastic.targets",
    "fgvar.estimators.schemes",
    *(f"fgvar.theory{name}" for name in THEORY),
    "fgvar.measurement",
    "fgvar.measurement.dataset_checks",
    "fgvar.measurement.files",
    "fgvar.measurement.dataset",
    "fgvar.measurement.stored",
    "fgvar.measurement.summary",
    "fgvar.measurement.protocol_checks",
    "fgvar.measurement.draws",
    "fgvar.measurement.references",
    "fgvar.measurement.stacks",
    "fgvar.measurement.strips",
    "fgvar.measurement.moments",
    "fgvar.measurement.mutation_guard",
    "fgvar.measurement.cost",
    "fgvar.measurement.arguments",
    "fgvar.measurement.budget",
    "fgvar.measurement.intervals",
    "fgvar.measurement.data_variance",
    "fgvar.measurement.report",
    "fgvar.measurement.tabular",
    "fgvar.measurement.tables",
    "fgvar.measurement.sums",
    "fgvar.measurement.statistics",
    "fgvar.measurement.relative",
    "fgvar.measurement.shared_references",
    "fgvar.measurement.closed",
    "fgvar.measurement.sampled",
    "fgvar.measurement.paired",
    "fgvar.measurement.measure",
    *(f"fgvar.data.{name}" for name in ("augmentation", "sources", "split", "examples", "images")),
    "fgvar.data",
    *(f"fgvar.training{name}" for name in TRAINING),
    *(f"fgvar.sweeps{name}" for name in SWEEPS),
    "fgvar.testing",
    "fgvar.testing.resources",
    "fgvar.testing.black_box",
    "fgvar.testing.polynomials",
    "fgvar.testing.enumeration",
    "fgvar.testing.line_quadrature",
    "fgvar.testing.load",
    "fgvar.testing.mean_tests",
    "fgvar.testing.mutants.broken_words",
    "fgvar.testing.mutants.broken_estimates",
    "fgvar.testing.mutants.broken_streams",
    "fgvar.testing.mutants.moved_probabilities",
    "fgvar.testing.problems",
    "fgvar.testing.mutants.mutant",
    "fgvar.testing.mutants.published_draws",
    "fgvar.testing.mutants.broken_samples",
    "fgvar.testing.mutants.broken_carriers",
    "fgvar.testing.mutants.broken_unlearning",
    "fgvar.testing.mutants.published_gradients",
    "fgvar.testing.mutants.published_objectives",
    "fgvar.testing.mutants.published",
    "fgvar.testing.mutants.lookalikes",
    "fgvar.testing.mutants",
    "fgvar.testing.small",
    "fgvar.testing.strategies",
    "fgvar.testing.verdict",
    "fgvar.testing.statistical",
    "fgvar.testing.under_test",
    "fgvar.testing.comparisons",
    "fgvar.testing.exact_moments",
    "fgvar.testing.report",
    "fgvar.testing.required_checks",
    "fgvar.testing.frequencies",
    "fgvar.testing.noise_check",
    "fgvar.testing.sampled_checks",
    "fgvar.testing.forecast",
    "fgvar.testing.declared_checks",
    "fgvar.testing.bias_order_check",
    "fgvar.testing.stream_check",
    "fgvar.testing.unbiasedness",
    "fgvar.testing.weights_check",
    "fgvar.testing.sensitivity_check",
    "fgvar.testing.checks",
    "fgvar.testing.gallery",
    *(f"fgvar.plot{name}" for name in PLOT),
    *(f"fgvar.pages{name}" for name in ("", ".pictures", ".page", ".dataset_page", ".check_page")),
    "fgvar.commands",
    "fgvar.dataset_commands",
    "fgvar.cli",
    "fgvar.__main__",
)
XARRAY = (
    "fgvar.storage.foreign",
    "fgvar.storage.packing",
    "fgvar.measurement.dataset_checks",
    "fgvar.measurement.files",
    "fgvar.measurement.dataset",
    "fgvar.measurement.report",
    "fgvar.measurement.tables",
    "fgvar.measurement.stored",
    "fgvar.measurement.summary",
    "fgvar.measurement.measure",
    "fgvar.pages.dataset_page",
    "fgvar.training.probes",
    "fgvar.training.loop",
    "fgvar.training.train",
    "fgvar.sweeps.keys",
    "fgvar.sweeps.cells",
    "fgvar.sweeps.grid",
    "fgvar.sweeps.local",
    "fgvar.sweeps.sweep",
)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    found, nodes = set(), list(ast.walk(ast.parse(path.read_text())))
    blocks = (node for node in nodes if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    for_annotations = {id(inside) for block in blocks for inside in ast.walk(block)}  # which no import runs
    for node in nodes:
        if id(node) in for_annotations:
            continue
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
    if not name.startswith("fgvar.testing"):
        assert not any(other.startswith(("hypothesis", "pytest")) for other in found)
    assert name in ORDER, f"{name} has no place in the order of layers yet"
    later = [other for other in ours if other in ORDER and ORDER.index(other) > ORDER.index(name)]
    assert not later, f"{name} imports {later}, which stand above it"
    if name not in XARRAY and not name.startswith("fgvar.plot"):
        assert "xarray" not in found


def test_every_public_name_loads_and_is_documented() -> None:
    for name in fgvar.__all__:
        assert getattr(fgvar, name).__doc__, name
    assert set(fgvar.__all__) <= set(dir(fgvar))
    assert 35 <= len(fgvar.__all__) <= 55


@pytest.mark.parametrize(
    "subject", [*fgvar._SUBJECTS, *fgvar._MODULES, "measurement", "training", "sweeps", "storage", "pages"]
)
def test_every_name_of_a_subject_loads_and_is_documented(subject: str) -> None:
    found = importlib.import_module(f"fgvar.{subject}")
    assert found is getattr(fgvar, subject)
    twice = {"plot": {"save", "sweep"}}  # figures are saved, too, and a sweep is drawn by its name
    assert set(found.__all__) & set(fgvar.__all__) == twice.get(subject, set()), "one name has one place"
    for name in found.__all__:
        assert getattr(found, name).__doc__, name
        assert name in dir(found)
    with pytest.raises(AttributeError, match="mine"):
        found.mine  # noqa: B018


@pytest.mark.parametrize("name", ["measur", "__wrapped__"])
def test_a_misspelt_public_name_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'fgvar'.*{name}"):
        getattr(fgvar, name)
    assert not hasattr(fgvar, name)


@pytest.mark.parametrize(
    ("looked_in", "name", "place"),
    [
        (fgvar, "Sphere", "fgvar.noise.Sphere"),
        (fgvar.oracles, "Jvp", "fgvar.Jvp"),
        (fgvar.noise, "Replay", "fgvar.oracles.Replay"),
    ],
)
def test_a_name_of_another_place_is_answered_with_its_place(looked_in: ModuleType, name: str, place: str) -> None:
    with pytest.raises(AttributeError, match=rf"has no '{name}'; it is {place}$"):
        getattr(looked_in, name)


def test_a_misspelt_public_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(AttributeError, match="unknown name 'with_site'; did you mean 'with_sites'"):
        _ = fgvar.with_site
    with pytest.raises(ImportError, match="mesure"):
        from fgvar import mesure  # noqa: F401


@pytest.mark.parametrize("path", sorted([*(ROOT / "studies").rglob("*.py"), *(ROOT / "figures").glob("*.py")]))
def test_what_studies_and_figures_need_is_public(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fgvar":
            package = importlib.import_module(str(node.module))
            for alias in node.names:
                assert alias.name in package.__all__, f"{node.module}.{alias.name}"


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_import_is_lazy() -> None:
    assert run("import fgvar, sys; print('torch' in sys.modules, 'numpy' in sys.modules)").split() == [
        "False",
        "False",
    ]


# What studies share, or are made of.
HELPERS = {
    "common.py",
    "language_network.py",
    "rdp_networks.py",
    "regularisation_rules.py",
    "residual_network.py",
    "runs.py",
    "stream_directions.py",
    "training.py",
}
STUDIES = {path.name for path in (ROOT / "studies").glob("*.py")} - HELPERS


@pytest.mark.parametrize("study", sorted(STUDIES))
def test_help_of_a_study_needs_no_torch(study: str) -> None:
    code = (
        f"import sys, runpy; sys.argv = ['{study}', '--help']\n"
        f"try: runpy.run_path('studies/{study}', run_name='__main__')\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    assert run(code).split()[-1] == "False"


def test_every_study_has_its_paragraph_and_picture() -> None:
    text = (ROOT / "studies" / "README.md").read_text()
    for name in STUDIES:
        assert f"`{name}`" in text, name
    for picture in (ROOT / "figures" / "data").glob("*.png"):
        assert f"../figures/data/{picture.name})" in text, picture.name


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_nobody_touches_the_global_random_state(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"torch\.(manual_seed|seed|set_rng_state)\(|np\.random\.(seed|rand|randn|normal)\(", text)
    for call in re.findall(r"torch\.rand\w*\([^)]*(?:\)[^)]*)?\)", text):
        assert "generator=" in call or ">>>" in text[: text.index(call)].splitlines()[-1], call

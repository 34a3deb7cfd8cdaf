"""The quickstart study, as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tyro

import fgvar
from studies import quickstart

ROOT = Path(__file__).resolve().parents[2]


def test_smoke(tmp_path, capsys) -> None:
    out = tmp_path / "quickstart.nc"
    quickstart.main(tyro.cli(quickstart.Config, args=["--smoke", "--out", str(out)]))
    printed = capsys.readouterr().out
    assert "trained by LG-FG-A" in printed
    assert "relative variance" in printed
    for suffix in (".nc", ".pdf", ".png"):
        assert out.with_suffix(suffix).stat().st_size > 1000, suffix
    dataset = fgvar.open_dataset(out)
    assert list(dataset["algorithm"].values) == ["LG-FG-A"]
    assert set(dataset["estimator"].values) == {"FG-W", "FG-A", "LG-FG-W", "LG-FG-A", "LG-BP"}
    assert dataset["step"][0] == 1
    for name in ("relative_variance", "cosine", "sq_bias", "slope"):
        chosen = dataset[name].sel(layer="perturbed", estimator=["FG-W", "FG-A", "LG-FG-W", "LG-FG-A"])
        assert np.isfinite(chosen).all(), name
    assert (dataset["cosine_se"].sel(layer="perturbed", estimator="FG-W") > 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--algorithms", "LG-FG-B"], "LG-FG-A"),
        (["--lr", "-1"], "lr > 0"),
        (["--epoch", "3"], "--epochs"),
    ],
)
def test_wrong_input_is_refused(arguments: list[str], message: str, tmp_path, capsys) -> None:
    with pytest.raises((ValueError, SystemExit)) as refused:
        quickstart.main(tyro.cli(quickstart.Config, args=["--smoke", "--out", str(tmp_path / "a.nc"), *arguments]))
    printed = capsys.readouterr()
    assert message in str(refused.value) + printed.err + printed.out
    assert not list(tmp_path.iterdir())


def test_wrong_input_is_one_clear_line(tmp_path) -> None:
    command = [sys.executable, "studies/quickstart.py", "--smoke", "--out", str(tmp_path / "a.nc"), "--data", "digit"]
    # Offline: a misspelt name would otherwise be looked for on the hub, which takes its time to give up.
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, env=environment)
    assert done.returncode != 0
    assert "digits" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())

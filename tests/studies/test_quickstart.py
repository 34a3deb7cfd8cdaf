"""The quickstart study, as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from studies import quickstart

ROOT = Path(__file__).resolve().parents[2]


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

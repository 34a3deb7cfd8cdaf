"""Rows of the benchmark: what they say, and that the smallest of each kind runs."""

import pytest

from tests.benchmarks import networks
from tests.benchmarks.timing import Row


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (Row("a", [1.0, 2.0, 9.0], 2.5), "| a | 2 × | 1 to 9 | ≤ 2.5 | met |"),
        (Row("a", [1.0], 2.5, at_most=False, unit="s"), "| a | 1 s |  | ≥ 2.5 | missed |"),
        (Row("a", [3.0]), "| a | 3 × |  |  |  |"),
        (Row("a", [], 2.5), "| a | – |  | ≤ 2.5 | not installed |"),
    ],
)
def test_lines(row: Row, line: str) -> None:
    assert row.to_markdown() == line
    assert all(cell in str(row) for cell in row.cells)


def test_small_networks_beside_the_peers_that_are_there() -> None:
    found = {row.what: row for row in networks.small({4: 64})}
    assert len(found) == 8
    assert all(found[f"64-4-4-10, FG-W: {oracle} / torch"].values for oracle in ("Jvp()", "Replay()"))


@pytest.mark.parametrize("who", ["fgvar", "by hand"])
def test_a_large_network_in_a_child(who: str) -> None:
    found = networks.in_a_child(who, "MeZO", 2, 16)
    assert found["seconds"] > 0
    assert found["copies"] >= 0

"""Memory that is freed and taken again within a run."""

import resource
import sys

import pytest
import torch

from fgvar import memory


def faults(megabytes: int = 96) -> int:
    """Pages that are faulted in by writing and freeing tensors of 24 MB, as a training step does."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(6 << 20) for _ in range(megabytes // 24)]
    del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(memory._glibc() is None, reason="memory is kept by glibc alone")
def test_freed_memory_is_taken_again_without_page_faults() -> None:
    with memory.kept():
        faults()
        assert faults() < 100  # of the 24,576 pages of 96 MB


def test_elsewhere_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_glibc", lambda: None)
    with memory.kept():
        assert float(torch.ones(3).sum()) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux")
def test_an_error_passes() -> None:
    with pytest.raises(KeyError), memory.kept():
        raise KeyError

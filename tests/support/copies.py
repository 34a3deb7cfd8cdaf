"""Copies of a large network's parameters that a piece of work takes: the resident memory of a child process.

VmHWM is the child's own; the maximum that getrusage tells begins with its parent's, and would hide all of it.
"""

import os
import subprocess
import sys

# 29 million numbers in linear layers, and inputs of four examples.
CHILD = """
import torch, fgvar
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
def linear(fan_in, fan_out):
    return torch.nn.utils.skip_init(torch.nn.Linear, fan_in, fan_out)
net = torch.nn.Sequential(*(linear(1024, 1024) for _ in range(28)), linear(1024, 10))
small = torch.nn.Linear(1024, 10)
with torch.no_grad():
    for p in net.parameters():
        p.normal_(std=1 / 32)
{prepare}
before = peak()
{work}
after = peak()
print((after - before) * 1024 / (4 * sum(p.numel() for p in net.parameters())))
"""


def copies_taken(prepare: str, work: str) -> float:
    """Copies of ``net`` beyond itself and all that ``prepare``, which should use ``small``, has imported."""
    # One thread: beside the suite's other process two wait for each other, ten times as long as they work.
    found = subprocess.run(
        [sys.executable, "-c", CHILD.format(prepare=prepare, work=work)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert found.returncode == 0, found.stderr
    return float(found.stdout.split()[-1])

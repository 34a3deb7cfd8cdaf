"""The stages at which the language model is looked at: initial, pretrained, and twice on the way of fine-tuning."""

import copy
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studies import language_network as networks
from studies.language_network import Base

STAGES = ("initial", "pretrained", "half fine-tuned", "fine-tuned")


def staged(its: Base, trainable: str, fine_tuning: int, fine_lr: float, folder: Path) -> dict[str, Mapping[str, Any]]:
    """State of the network at each stage, as its file in the folder has it, or as it is trained now.

    Fine-tuning goes twice through half of the examples, each time by a schedule of its own.
    """
    import torch

    import fgvar
    from fgvar.storage import replace

    key = hashlib.sha256(f"{its} {trainable} {fine_tuning} {fine_lr} {networks.origin()}".encode()).hexdigest()[:16]
    file = folder / f"stages_{key}.pt"
    if file.exists():
        return torch.load(file, weights_only=True)
    nets = {"initial": networks.gpt2(its), "pretrained": networks.pretrained(its, folder)}
    nets = {stage: networks.trained_in_part(net, its, trainable) for stage, net in nets.items()}
    states = {stage: net.state_dict() for stage, net in nets.items()}
    data = networks.examples(networks.help_topics(), its.positions, fine_tuning, its.seed)
    schedule, half = networks.schedule_of(its.batch, fine_lr), fine_tuning // 2
    net = nets["pretrained"]
    for stage, rows in zip(STAGES[2:], (slice(half), slice(half, None)), strict=True):
        part = fgvar.data.Examples(data.inputs[rows], data.targets[rows], name="bytes")
        run = fgvar.train(
            net, networks.backprop(), part, schedule, loss="causal_lm", seed=its.seed, device="cpu", name=stage
        )
        states[stage] = run.params
        net = copy.deepcopy(net)
        net.load_state_dict(run.params)
    torch.save(states, buffer := io.BytesIO())
    replace(file, [buffer.getvalue()])
    return states


def network(its: Base, trainable: str, state: Mapping[str, Any]) -> Any:
    """The network of which this set is trainable, with this state."""
    net = networks.trained_in_part(networks.gpt2(its), its, trainable)
    net.load_state_dict(state)
    return net

"""Recurrent layers as time loops of plain operations: torch's fused kernels know neither forward mode nor vmap.

Each layer, and each direction of it, multiplies its inputs of all times at once, then goes from step to step:

    RNN   h' = φ(a + b), φ = tanh or relu
    GRU   r, z = σ(a_r + b_r), σ(a_z + b_z);  n = tanh(a_n + r·b_n);  h' = (1 − z)·n + z·h
    LSTM  i, f, o = σ(a + b) each, g = tanh(a_g + b_g);  c' = f·c + i·g;  h' = o·tanh(c'), projected where asked

with a = W_ih x + b_ih of the input and b = W_hh h + b_hh of the state h.

Source: torch 2.13, ``nn.RNN``, ``nn.GRU`` and ``nn.LSTM``, whose parameters these are.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from fgvar.nn.forward_mode import linear_jvp

State = tuple[Tensor, ...]  # (h,), of an LSTM (h, c)


def lstm_step(a: Tensor, b: Tensor, state: State) -> State:
    i, f, g, o = (a + b).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_step(a: Tensor, b: Tensor, state: State) -> State:
    (a_r, a_z, a_n), (b_r, b_z, b_n) = a.chunk(3, -1), b.chunk(3, -1)
    z = (a_z + b_z).sigmoid()
    n = torch.tanh(a_n + (a_r + b_r).sigmoid() * b_n)
    return ((1 - z) * n + z * state[0],)


STEPS = {
    "LSTM": lstm_step,
    "GRU": gru_step,
    "RNN_TANH": lambda a, b, _: ((a + b).tanh(),),
    "RNN_RELU": lambda a, b, _: ((a + b).relu(),),
}


class _TimeLoop(nn.RNNBase):
    def forward(self, input: Any, hx: Any = None) -> Any:
        """Outputs [batch, time, features] (without batch_first [time, batch, features]) and the last states."""
        self._require_padded(input)
        batch_axis = 0 if self.batch_first else 1
        unbatched = input.ndim == 2  # [time, features]: a batch of one
        x = input.unsqueeze(batch_axis) if unbatched else input
        states = self._initial_states(x, hx, unbatched)
        finals: list[State] = []
        for layer in range(self.num_layers):
            if layer:
                x = functional.dropout(x, self.dropout, self.training)
            outputs = []
            for suffix in (f"_l{layer}", f"_l{layer}_reverse")[: 1 + self.bidirectional]:
                number = len(finals)  # torch counts layer by layer, each forward and then backward
                output, final = self._scan(x, suffix, tuple(state[number] for state in states))
                outputs.append(output)
                finals.append(final)
            x = torch.cat(outputs, -1)
        last = [torch.stack(parts) for parts in zip(*finals, strict=True)]
        if unbatched:
            x, last = x.squeeze(batch_axis), [state.squeeze(1) for state in last]
        return x, tuple(last) if self.mode == "LSTM" else last[0]

    def _scan(self, x: Tensor, suffix: str, state: State) -> tuple[Tensor, State]:
        """Outputs of one direction of a layer at all times, and its last state."""
        time_axis, backward = 1 if self.batch_first else 0, suffix.endswith("_reverse")
        of_input, of_state = self._product("ih", suffix), self._product("hh", suffix)
        project = self._product("hr", suffix) if self.proj_size else None
        steps = of_input(x).unbind(time_axis)  # one product for all times, as nothing in it waits for the state
        outputs = []
        for a in steps[::-1] if backward else steps:
            state = STEPS[self.mode](a, of_state(state[0]), state)
            if project:
                state = (project(state[0]), *state[1:])
            outputs.append(state[0])
        return torch.stack(outputs[::-1] if backward else outputs, time_axis), state

    def _product(self, kind: str, suffix: str) -> Callable[[Tensor], Tensor]:
        """x ↦ Wx + b with the parameters of this kind."""
        # By name: torch's own list of weights still holds those of the module, and not those of a functional call.
        bias = getattr(self, f"bias_{kind}{suffix}") if self.bias and kind != "hr" else None
        return partial(linear_jvp, functional.linear, weight=getattr(self, f"weight_{kind}{suffix}"), bias=bias)

    def _initial_states(self, x: Tensor, hx: Any, unbatched: bool) -> State:
        """Each [layers · directions, batch, features]: those given, or zeros."""
        shape = self.get_expected_hidden_size(x, None)
        shapes = (shape, (*shape[:2], self.hidden_size)) if self.mode == "LSTM" else (shape,)
        if hx is None:
            return tuple(x.new_zeros(shape) for shape in shapes)
        states = tuple(hx) if self.mode == "LSTM" else (hx,)
        if unbatched:
            states = tuple(state.unsqueeze(1) for state in states)
        for state, expected in zip(states, shapes, strict=True):
            self.check_hidden_size(state, expected)  # torch's own: a state for one example would be broadcast
        return states

    def _require_padded(self, input: Any) -> None:
        """Raise unless the input is a tensor of two or three axes."""
        if isinstance(input, PackedSequence):
            raise TypeError(
                f"{self._get_name()} got a PackedSequence, whose steps hold fewer and fewer examples, expected a "
                "tensor; pad the sequences to one length and mask what lies behind their ends; for a backward "
                "direction flip each one's own steps (masks and indices can be part of the inputs)"
            )
        if input.ndim not in (2, 3):
            raise ValueError(
                f"{self._get_name()} got inputs of shape {list(input.shape)}, expected [batch, time, features] with "
                "batch_first=True, [time, batch, features] without, or [time, features]"
            )


# Named as torch's own, so that modules print as they did.


class RNN(_TimeLoop, nn.RNN):
    pass


class GRU(_TimeLoop, nn.GRU):
    pass


class LSTM(_TimeLoop, nn.LSTM):
    pass

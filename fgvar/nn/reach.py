"""ForwardTrace: the calls of one forward pass, and what follows: sites, local ends, and which losses each reaches."""

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor, nn

from fgvar.nn.heads import LocalHead
from fgvar.nn.sites import sites_of
from fgvar.nn.structures import activity

OUTPUT = "output"  # the last place where a loss can be read, after all local ends
AFTER_ALL = 1 << 60  # a tick later than any: when the output is read


@dataclass(frozen=True)
class Visit:
    """One call of one module in a forward pass: the ticks at which it began and ended, and what it returned.

    Attributes:
        shape: of the output, where that is a tensor.
        activity: of the output, or of the first tensor of a tuple.
    """

    entered: int
    left: int
    shape: tuple[int, ...] | None
    activity: tuple[int, ...] | None = None


class CallRecorder:
    """Notes the `visits` of all modules, each where its call ends, by a clock that ticks at every begin and end."""

    def __init__(self) -> None:
        self.visits: list[tuple[str, Visit]] = []
        self._entered: list[int] = []  # when the calls that are going on began, outermost first
        self._clock = 0

    def enter(self) -> None:
        self._entered.append(self._clock)
        self._clock += 1

    def leave(self, name: str, output: object) -> None:
        found = activity(output)
        shape = None if found is None else tuple(found.shape)
        whole = shape if isinstance(output, Tensor) else None
        self.visits.append((name, Visit(self._entered.pop(), self._clock, whole, shape)))
        self._clock += 1


class ForwardTrace:
    """What one forward pass shows of a network: its sites, its local ends, and what reaches which end.

    ``sites`` are the activities that can be perturbed, in the order of their calls, with their whole shapes;
    ``ends`` are the block ends that have a local head (end → head), in that order too; ``batch_size`` is that
    of the pass; ``direct_edges`` is what `Network.direct_edges` says, for a network with ends.

    Raises:
        ValueError: an end that the pass reaches not once, or whose features carry no batch axis.
    """

    def __init__(self, module: nn.Module, recording: list[tuple[str, Visit]], batch_size: int) -> None:
        self.batch_size = batch_size
        self.visits: dict[str, list[Visit]] = {}
        for name, visit in recording:
            self.visits.setdefault(name, []).append(visit)
        self.direct_edges: dict[str, tuple[str, ...]] = {}
        heads = {f"{k}.end": k for k, v in module.named_modules() if isinstance(v, LocalHead)}
        # In the order of the pass, not of registration: "later" and "own" end mean the data's way.
        self.ends = {name: heads[name] for name, _ in recording if name in heads}
        sites = set(sites_of(module))
        self.sites = {name: self.visits[name][0].shape or () for name, _ in recording if name in sites}
        for end, head in heads.items():
            visits = self.visits.get(end, [])
            if len(visits) != 1:
                raise ValueError(
                    f"the features of local head {head!r} are read {len(visits)} times in one forward pass, expected "
                    "once; put the head after a module that is called, and only once"
                )
            if (visits[0].shape or ())[:1] != (batch_size,):
                raise ValueError(
                    f"the features of local head {head!r} have shape {visits[0].shape}, expected the batch axis "
                    f"({batch_size}) first; put the head after a module that keeps examples along the first axis"
                )

    def ends_after(self, name: str, cuts: Collection[str]) -> tuple[tuple[str, ...], str | None]:
        """The ends that module ``name`` influences when gradients stop at ``cuts``, and its *own* end.

        The own end is the first one after the module, where the module's declared separation of patches and
        groups holds; None where it is called more than once or encloses an end.
        """
        # By time alone: whoever begins before an end is read may have moved it. Too many ends keep credit unbiased,
        # and only add noise; a missing one would bias it.
        ticks = {end: self.visits[end][0].entered for end in self.ends} | {OUTPUT: AFTER_ALL}
        while name and name not in self.visits:  # a module used without being called counts as its parent
            name = name.rpartition(".")[0]
        # The network itself, which no hook sees, lasts from before the first call to just before the output.
        visits = self.visits[name] if name else [Visit(-1, AFTER_ALL - 1, None)]
        reached: dict[str, None] = {}
        for visit in visits:
            for end, tick in ticks.items():
                if tick > visit.entered:
                    reached[end] = None
                if tick > visit.left and end in cuts:
                    break  # not at a cut inside of the module, whose later part still leads on
        # Where the module encloses an end, that one is `first`, and what lies behind it has another: none is its own.
        after = next(end for end, tick in ticks.items() if tick > visits[0].left)
        first = next(iter(reached))
        return tuple(reached), after if len(visits) == 1 and first == after else None

    def losses_reached(self, name: str, cuts: Collection[str]) -> set[str]:
        """The ends, and OUTPUT, that a parameter or site leads to when gradients stop at ``cuts``."""
        if not self.ends:  # no edges have been looked for: there is one loss
            return {OUTPUT}
        reached: set[str] = set()
        waiting = list(self.direct_edges[name])
        while waiting:
            end = waiting.pop()
            if end not in reached:
                reached.add(end)
                # What reaches an end goes on from there, unless gradients stop at it. From OUTPUT nothing goes on.
                waiting += () if end in cuts else self.direct_edges.get(end, ())
        return reached

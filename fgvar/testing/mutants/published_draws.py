"""Published draws: two faults of the released code of randomised dynamic programming, each a switch."""

from dataclasses import dataclass, replace

from torch import Tensor

from fgvar.problem import Problem
from fgvar.stochastic.draw import Draw, DrawLaw
from fgvar.stochastic.populations import probabilities


@dataclass(frozen=True)
class PublishedDraw(Draw):
    """`Draw` of ``size`` terms beside the ``top`` ones, by the code that was released (``sample_states``).

    Args:
        as_put_back: what is drawn is weighed by 1/(m p), as if it had been put back: E ω = π/(m p), π the
            probability of being drawn. The code draws by ``torch.multinomial``, which puts nothing back by default.
        refilled: the top terms keep a score of 10⁻⁷ among the others, in place of 0, so that they count twice:
            E ω = 2, by weights that are rare and enormous.

    Source: Fu et al. 2022, code.

    Example:
        >>> from fgvar.stochastic.scores import TermSizes
        >>> PublishedDraw(2, top=1, by=TermSizes(), replace=False, over="terms", as_put_back=True).refilled
        False
    """

    as_put_back: bool = False
    refilled: bool = False

    FILLED = 1e-7

    def _weighed(self, drawn: Tensor, law: DrawLaw) -> tuple[Tensor, Tensor]:
        if self.as_put_back:
            law = law._replace(choice=replace(law.choice, replace=True))
        return super()._weighed(drawn, law)

    def law(self, problem: Problem, name: str, *, check: bool = False) -> DrawLaw:
        law = super().law(problem, name, check=check)
        if not self.refilled or not self.top:
            return law
        scores = self.by.scores(problem, name).detach().double()
        p = probabilities(scores.scatter(-1, law.top, self.FILLED))
        return law._replace(choice=replace(law.choice, probabilities=p), others=law.others.new_ones(law.others.shape))

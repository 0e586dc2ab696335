"""ReDrafter: beams of a small recurrent net that sees the target's hidden state (2403.09919).

Like upstream's engine, it searches for the `num_beams` likeliest continuations and checks them as
one tree, in which common beginnings stand once. Unlike it, it ends the beams where the step hardly
comes to their next tokens (`growth.LEAST_CHANCE`).
"""

from collections.abc import Mapping, Sequence

from specpipe.contracts import EMPTY, Draft, Logits, Role, Runner, Sampling, Scores, Verdict
from specpipe.methods import ReDrafter
from specpipe.speculate.growth import Node, Recurrent, as_draft, beams, grow_levels
from specpipe.speculate.medusa import hidden_of_last


class ReDrafterProposer:
    """Lays the beams out as a tree; siblings are chosen with certainty."""

    def __init__(self, runner: Runner, num_beams: int, length: int) -> None:
        self.draft_nodes = num_beams * length
        self._runner, self._beams, self._length = runner, num_beams, length
        self._root = 0
        self._hidden: Logits | None = None  # [D], of the last token before the root

    def start(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """Forget the old sequence; the first step, which reads the prompt, is not guessed at."""
        self._hidden = None

    def propose(self, limit: int) -> Draft:
        """Return the beams, cut to `limit` tokens."""
        length = min(limit, self._length)
        if self._hidden is None or length <= 0:
            return EMPTY
        drafter = Recurrent(self._runner, self._hidden, self._beams, length)
        return as_draft(beams(grow_levels(Node(self._root), drafter.after, self._beams, length)))

    def observe(self, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """Keep what the drafter will look at."""
        self._root = verdict.next_token
        self._hidden = hidden_of_last(scores, verdict)


def build(options: ReDrafter, runners: Mapping[Role, Runner]) -> ReDrafterProposer:
    """Return the proposer of `method: redrafter`; the drafter is part of the target's engine."""
    return ReDrafterProposer(runners["target"], options.num_beams, options.draft_len_per_beam)

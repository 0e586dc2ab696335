"""ReDrafter: beams of a recurrent drafter that reads the target's hidden state (2403.09919).

Like TensorRT-LLM's engine, it searches for the `num_beams` likeliest continuations and verifies
them as one tree, in which common prefixes are merged. With `draft_length: fixed` they have their
full length, as that engine's. Else they end where their next tokens become unlikely
(`growth.LEAST_CHANCE`).
"""

from collections.abc import Mapping, Sequence

from specpipe.config.speculation import ReDrafter
from specpipe.core.contracts import EMPTY, Asking, Draft, Logits, Role, Sampling, Scores, Verdict
from specpipe.core.engines import EngineFacts
from specpipe.speculate.growth import LEAST_CHANCE, Node, Recurrent, as_draft, beams, grow_levels
from specpipe.speculate.medusa import hidden_of_last


class ReDrafterProposer:
    """Arranges the beams as a tree; siblings are chosen deterministically.

    A level whose nodes have a total probability below `least_chance` ends the beams.
    """

    def __init__(self, num_beams: int, length: int, least_chance: float = LEAST_CHANCE) -> None:
        self.draft_nodes = num_beams * length
        self._beams, self._length, self._least_chance = num_beams, length, least_chance
        self._root = 0
        self._hidden: Logits | None = None  # [D], of the last token before the root

    def start(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """Start a new sequence; the first step, which runs the prompt, has no draft."""
        self._hidden = None

    def propose(self, limit: int) -> Asking[Draft]:
        """Return the beams, cut to `limit` tokens."""
        length = min(limit, self._length)
        if self._hidden is None or length <= 0:
            return EMPTY
        drafter = Recurrent("target", self._hidden, self._beams, length, self._least_chance)
        levels = yield from grow_levels(Node(self._root), drafter.after, self._beams, length)
        return as_draft(beams(levels))

    def observe(self, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """Keep the root token and the hidden state for the drafter."""
        self._root = verdict.next_token
        self._hidden = hidden_of_last(scores, verdict)


def build(options: ReDrafter, engines: Mapping[Role, EngineFacts]) -> ReDrafterProposer:
    """Return the proposer of `method: redrafter`; the drafter is part of the target's engine."""
    least = 0.0 if options.draft_length == "fixed" else LEAST_CHANCE
    return ReDrafterProposer(options.num_beams, options.draft_len_per_beam, least)

"""Plain decoding: nothing is ever guessed."""

from collections.abc import Mapping, Sequence

from specpipe.contracts import EMPTY, Draft, Role, Runner, Sampling, Scores, Verdict
from specpipe.methods import NoSpeculation


class NoProposer:
    """The proposer whose every draft is empty."""

    draft_nodes = 0

    def start(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """Nothing to remember."""

    def propose(self, limit: int) -> Draft:
        """Return the empty draft."""
        return EMPTY

    def observe(self, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """Nothing to learn."""


def build(options: NoSpeculation, runners: Mapping[Role, Runner]) -> NoProposer:
    """Return the proposer of `method: none`."""
    return NoProposer()

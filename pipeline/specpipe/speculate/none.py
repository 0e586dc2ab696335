"""Plain decoding: every draft is empty."""

from collections.abc import Mapping, Sequence

from specpipe.contracts import EMPTY, Draft, Role, Runner, Sampling, Scores, Verdict
from specpipe.methods import NoSpeculation


class NoProposer:
    """The proposer of empty drafts."""

    draft_nodes = 0

    def start(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """Do nothing."""

    def propose(self, limit: int) -> Draft:
        """Return the empty draft."""
        return EMPTY

    def observe(self, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """Do nothing."""


def build(options: NoSpeculation, runners: Mapping[Role, Runner]) -> NoProposer:
    """Return the proposer of `method: none`."""
    return NoProposer()

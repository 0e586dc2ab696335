"""Plain decoding: every draft is empty."""

from collections.abc import Mapping, Sequence

from specpipe.config.speculation import NoSpeculation
from specpipe.core.contracts import (
    EMPTY,
    Asking,
    Draft,
    Role,
    Sampling,
    Scores,
    Verdict,
    without_asking,
)
from specpipe.core.engines import EngineFacts


class NoProposer:
    """The proposer of empty drafts."""

    draft_nodes = 0

    def start(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """Do nothing."""

    def propose(self, limit: int) -> Asking[Draft]:
        """Return the empty draft."""
        return without_asking(EMPTY)

    def observe(self, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """Do nothing."""


def build(options: NoSpeculation, engines: Mapping[Role, EngineFacts]) -> NoProposer:
    """Return the proposer of `method: none`."""
    return NoProposer()

"""The inputs of the proposer tests: a target of few tokens, drafts of three kinds, options."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from specpipe.assembly import make_proposer
from specpipe.contracts import Floats, Proposer, Role, Runner, Sampling
from specpipe.methods import (
    DrafterOptions,
    DraftModel,
    DraftOptions,
    Hybrid,
    Lookahead,
    Medusa,
    NoSpeculation,
    PromptLookup,
    ReDrafter,
    Speculation,
)
from specpipe.speculate import decode
from specpipe.speculate.decode import Limits
from specpipe.speculate.vocabulary import in_vocabulary
from specpipe.trees import TreePath, complete_tree
from tests.unit.speculate.scripted import Law, ScriptedRunner, random_law

DRAFT = DraftOptions("unused")
WITH_HEADS = DraftOptions("unused", heads="unused")

OPTIONS: dict[str, Callable[[int], Speculation]] = {  # draft depth -> options
    "none": lambda depth: NoSpeculation(),
    "prompt_lookup": lambda depth: PromptLookup("prompt_lookup", depth, 1, 3),
    "prompt_lookup, tree": lambda depth: PromptLookup("prompt_lookup", depth, 1, 3, "dynamic"),
    "prompt_lookup, adaptive": lambda depth: PromptLookup(
        "prompt_lookup", depth, 1, 3, draft_length="adaptive"
    ),
    "draft_model": lambda depth: DraftModel("draft_model", DRAFT, depth),
    "draft_model with heads": lambda depth: DraftModel("draft_model", WITH_HEADS, depth),
    "draft_model with heads, confidence": lambda depth: DraftModel(
        "draft_model", WITH_HEADS, depth, draft_length="confidence", min_confidence=0.6
    ),
    "draft_model, adaptive": lambda depth: DraftModel(
        "draft_model", DRAFT, depth, draft_length="adaptive"
    ),
    "draft_model, confidence": lambda depth: DraftModel(
        "draft_model", DRAFT, depth, draft_length="confidence", min_confidence=0.6
    ),
    "lookahead": lambda depth: Lookahead("lookahead", 2, depth + 1, 3),
    "hybrid": lambda depth: Hybrid("hybrid", DRAFT, depth, 2, 3),
    "hybrid, confidence": lambda depth: Hybrid(
        "hybrid", DRAFT, depth, 2, 3, draft_length="confidence", min_confidence=0.6
    ),
    "hybrid, heads": lambda depth: Hybrid(
        "hybrid", None, depth, 2, 3, heads="unused", tree=_tree(depth)
    ),
    "hybrid, heads, one tree": lambda depth: Hybrid(
        "hybrid", None, depth, 1, 3, heads="unused", tree="dynamic"
    ),
    "medusa": lambda depth: Medusa("medusa", "unused", len(_tree(depth)), _tree(depth)),
    "medusa, dynamic": lambda depth: Medusa("medusa", "unused", depth, "dynamic"),
    "redrafter": lambda depth: ReDrafter("redrafter", "unused", 2, depth),
    "hybrid, redrafter": lambda depth: Hybrid(
        "hybrid", None, depth, 1, 3, redrafter=DrafterOptions("unused", 2, depth)
    ),
}


def _tree(depth: int) -> tuple[TreePath, ...]:
    """Return a chain of `depth` with siblings next to and under its first node."""
    chain = [(0,) * level for level in range(1, depth + 1)]
    return complete_tree([*chain, (1,), (1, 1)] if depth > 1 else [(0,), (1,)])


PROMPT = [0, 1, 2, 0, 2, 1, 1, 0, 1]  # every token was followed by several: trees have siblings


@dataclass(frozen=True)
class World:
    """A target over `vocab_size` tokens, and the possible distributions of a draft."""

    vocab_size: int
    target: Law = field(init=False)
    drafts: Mapping[str, Law] = field(init=False)

    def __post_init__(self) -> None:
        target = random_law(self.vocab_size, seed=1)
        drafts: dict[str, Law] = {
            "identical": target,
            "random": random_law(self.vocab_size, seed=2),
            "adversarial": lambda context: _worst(target(context)),
        }
        object.__setattr__(self, "target", target)
        object.__setattr__(self, "drafts", drafts)

    def proposer(self, options: str, draft_law: str = "random", depth: int = 3) -> Proposer:
        """Return a proposer of the table above."""
        draft = ScriptedRunner(self.drafts[draft_law], self.vocab_size)
        return self._proposer(options, draft, depth, self.drafts[draft_law])

    def proposer_of_size(self, options: str, vocab_size: int, depth: int = 3) -> Proposer:
        """Return a proposer whose draft model has a vocabulary of `vocab_size` rows."""
        draft = ScriptedRunner(random_law(vocab_size, seed=3), vocab_size)
        return self._proposer(options, in_vocabulary(draft, self.vocab_size), depth, self.target)

    def _proposer(self, options: str, draft: Runner, depth: int, heads: Law) -> Proposer:
        runners: Mapping[Role, Runner] = {
            "target": ScriptedRunner(self.target, self.vocab_size, heads=heads),
            "draft": draft,
        }
        return make_proposer(OPTIONS[options](depth), runners)

    def generate(
        self,
        proposer: Proposer,
        sampling: Sampling,
        limits: Limits,
        prompt: Sequence[int] = PROMPT,
    ) -> list[int]:
        """Decode with the target."""
        runner = ScriptedRunner(self.target, self.vocab_size)
        steps = decode.decode(runner, proposer, prompt, sampling, limits)
        return [token for step in steps for token in step.tokens]

    def plain(self, sampling: Sampling, limits: Limits) -> list[int]:
        """Decode one token per step."""
        return self.generate(make_proposer(NoSpeculation(), {}), sampling, limits)


def _worst(law: Floats) -> Floats:
    """Return a distribution with nearly all mass on the target's least likely token."""
    return 0.97 * np.eye(len(law))[int(np.argmin(law))] + 0.03 / len(law)

"""The inputs of the proposer tests: a target of few tokens, drafts of three kinds, options."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from specpipe.config.method_parts import DraftOptions, Eagle3Draft, Eagle3Options, ReDrafterOptions
from specpipe.config.speculation import (
    DraftModel,
    Eagle3,
    Hybrid,
    Lookahead,
    Medusa,
    NoSpeculation,
    PromptLookup,
    ReDrafter,
    Speculation,
)
from specpipe.core.contracts import ROOT, Draft, Floats, Ints, Proposer, Role, Sampling, Score
from specpipe.core.engines import EngineFacts
from specpipe.core.trees import TreePath, complete_tree
from specpipe.runtime.assembly import make_proposer
from specpipe.speculate import decode
from specpipe.speculate.decode import Limits, Step
from specpipe.speculate.vocabulary import in_vocabulary
from tests.helpers.languages import Language
from tests.helpers.scripted_engine import ScriptedEngine, ServedModel
from tests.helpers.scripted_model import (
    Allow,
    Cut,
    Distribution,
    Model,
    ScriptedModel,
    no_cut,
    proposed,
    random_distribution,
    run,
    whole_limit,
)

DRAFT = DraftOptions("unused")
EAGLE3 = Eagle3Draft("unused")
WITH_HEADS = DraftOptions("unused", heads="unused")

OPTIONS: dict[str, Callable[[int], Speculation]] = {  # draft depth -> options
    "none": lambda depth: NoSpeculation(),
    "prompt_lookup": lambda depth: PromptLookup("prompt_lookup", depth, 1, 3),
    "prompt_lookup, tree": lambda depth: PromptLookup("prompt_lookup", depth, 1, 3, "dynamic"),
    "prompt_lookup, fixed": lambda depth: PromptLookup(
        "prompt_lookup", depth, 1, 3, draft_length="fixed"
    ),
    "draft_model": lambda depth: DraftModel("draft_model", DRAFT, depth),
    "draft_model with heads": lambda depth: DraftModel("draft_model", WITH_HEADS, depth),
    "draft_model with heads, confidence": lambda depth: DraftModel(
        "draft_model", WITH_HEADS, depth, min_confidence=0.6
    ),
    "draft_model, fixed": lambda depth: DraftModel(
        "draft_model", DRAFT, depth, draft_length="fixed"
    ),
    "draft_model, confidence": lambda depth: DraftModel(
        "draft_model", DRAFT, depth, min_confidence=0.6
    ),
    "lookahead": lambda depth: Lookahead("lookahead", 2, depth + 1, 3),
    "hybrid": lambda depth: Hybrid("hybrid", DRAFT, depth, 2, 3),
    "hybrid, confidence": lambda depth: Hybrid("hybrid", DRAFT, depth, 2, 3, min_confidence=0.6),
    "hybrid, heads": lambda depth: Hybrid(
        "hybrid", None, depth, 2, 3, heads="unused", tree=_tree(depth)
    ),
    "hybrid, heads, one tree": lambda depth: Hybrid(
        "hybrid", None, depth, 1, 3, heads="unused", tree="dynamic"
    ),
    "medusa": lambda depth: Medusa("medusa", "unused", len(_tree(depth)), _tree(depth)),
    "medusa, dynamic": lambda depth: Medusa("medusa", "unused", depth, "dynamic"),
    "redrafter": lambda depth: ReDrafter("redrafter", "unused", 2, depth),
    "eagle3": lambda depth: Eagle3("eagle3", EAGLE3, depth),
    "eagle3, tree": lambda depth: Eagle3("eagle3", EAGLE3, depth, "dynamic", 2, depth),
    "hybrid, eagle3": lambda depth: Hybrid(
        "hybrid", None, depth, 1, 3, eagle3=Eagle3Options("unused", 2, depth)
    ),
    "hybrid, redrafter": lambda depth: Hybrid(
        "hybrid", None, depth, 1, 3, redrafter=ReDrafterOptions("unused", 2, depth)
    ),
}


def _tree(depth: int) -> tuple[TreePath, ...]:
    """Return a chain of `depth` with siblings next to and under its first node."""
    chain = [(0,) * level for level in range(1, depth + 1)]
    return complete_tree([*chain, (1,), (1, 1)] if depth > 1 else [(0,), (1,)])


PROMPT = [0, 1, 2, 0, 2, 1, 1, 0, 1]  # every token was followed by several: trees have siblings

# Request options of sampled answers, each with another rule of the distribution.
SAMPLED = {
    "plain": Sampling(top_k=0),
    "temperature": Sampling(top_k=0, temperature=0.6),
    "top_k": Sampling(top_k=2),
    "top_p": Sampling(top_k=0, top_p=0.8),
    "penalties": Sampling(top_k=0, repetition_penalty=1.5, frequency_penalty=0.4),
    "end_ids": Sampling(top_k=0, end_ids=(2, 0)),
    "min_tokens": Sampling(top_k=0, end_ids=(2, 0), min_tokens=2),
    "bad_words": Sampling(top_k=0, bad_words=((1, 2), (0, 0))),
}


@dataclass(frozen=True)
class Case:
    """A proposer and the models that answer its asks."""

    proposer: Proposer
    models: Mapping[Role, Model]

    def propose(self, limit: int) -> Draft:
        """Return the next draft."""
        return proposed(self.proposer.propose(limit), self.models)


@dataclass(frozen=True)
class World:
    """A target over `vocab_size` tokens, and the possible distributions of a draft."""

    vocab_size: int
    language: Language | None = None  # of all answers
    target: Distribution = field(init=False)
    drafts: Mapping[str, Distribution] = field(init=False)

    def __post_init__(self) -> None:
        target = random_distribution(self.vocab_size, seed=1)
        drafts: dict[str, Distribution] = {
            "identical": target,
            "random": random_distribution(self.vocab_size, seed=2),
            "adversarial": lambda context: _worst(target(context)),
        }
        object.__setattr__(self, "target", target)
        object.__setattr__(self, "drafts", drafts)

    def case(self, options: str, draft_name: str = "random", depth: int = 3) -> Case:
        """Return a proposer of the table above."""
        distribution = self.drafts[draft_name]
        return self._case(options, ScriptedModel(distribution), depth, distribution)

    def case_of_size(self, options: str, vocab_size: int, depth: int = 3) -> Case:
        """Return a proposer whose draft model has a vocabulary of `vocab_size` rows."""
        engine = ScriptedEngine(random_distribution(vocab_size, seed=3), vocab_size)
        draft = ServedModel(in_vocabulary(engine, self.vocab_size))
        return self._case(options, draft, depth, self.target)

    def _case(self, options: str, draft: Model, depth: int, heads: Distribution) -> Case:
        facts = EngineFacts(self.vocab_size, max_seq_len=10_000)
        proposer = make_proposer(OPTIONS[options](depth), {"target": facts, "draft": facts})
        return Case(proposer, {"target": ScriptedModel(self.target, heads), "draft": draft})

    def steps(
        self,
        case: Case,
        sampling: Sampling,
        limits: Limits,
        prompt: Sequence[int] = PROMPT,
        *,
        allow: Allow = whole_limit,
        cut: Cut = no_cut,
    ) -> list[Step]:
        """Decode with the target."""
        constraint = self.language.constraint(sampling.end_ids) if self.language else None
        decoding = decode.decode(case.proposer, prompt, sampling, limits, constraint=constraint)
        return run(decoding, case.models, allow, cut)

    def generate(
        self,
        case: Case,
        sampling: Sampling,
        limits: Limits,
        prompt: Sequence[int] = PROMPT,
        *,
        allow: Allow = whole_limit,
        cut: Cut = no_cut,
    ) -> list[int]:
        """Return the tokens of `steps`."""
        steps = self.steps(case, sampling, limits, prompt, allow=allow, cut=cut)
        return [token for step in steps for token in step.tokens]

    def plain(self, sampling: Sampling, limits: Limits) -> list[int]:
        """Decode one token per step."""
        proposer = make_proposer(NoSpeculation(), {})
        return self.generate(
            Case(proposer, {"target": ScriptedModel(self.target)}), sampling, limits
        )


def _worst(distribution: Floats) -> Floats:
    """Return a distribution with nearly all mass on the target's least likely token."""
    return 0.97 * np.eye(len(distribution))[int(np.argmin(distribution))] + 0.03 / len(distribution)


# --- drivers that allow and score less ----------------------------------------------------------


def some_allowance(seed: int) -> Allow:
    """Allow a random depth, a different one for every limit."""
    return lambda limit: int(np.random.default_rng([seed, limit]).integers(0, limit + 1))


def some_nodes(seed: int) -> Cut:
    """Score random nodes of drafts, with their parents.

    The choice depends on committed tokens only. Of a draft that was drawn, the first nodes are
    scored, as many as for any other draft after these tokens. A draft with scratch nodes is scored
    whole or not at all.
    """

    def cut(ask: Score) -> Ints | None:
        rng, draft = np.random.default_rng([seed, *ask.tokens]), ask.draft
        if draft.scratch:
            return None if rng.random() < 0.7 else np.zeros(0, np.int64)
        if draft.probs is not None:
            return np.arange(min(len(draft), int(rng.integers(0, 4))))
        kept: list[int] = []
        for node, parent in enumerate(draft.parents.tolist()):
            if rng.random() < 0.7 and (parent == ROOT or parent in kept):
                kept.append(node)
        return np.array(kept, np.int64)

    return cut

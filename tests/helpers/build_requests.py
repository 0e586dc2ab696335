"""Build requests from a flat list of facts, for tests of backends."""

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from functools import partial

from specpipe.config.method_parts import DraftOptions, Eagle3Draft
from specpipe.config.run_config import EngineOptions
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
from specpipe.config.upstream_methods import (
    DFlash,
    Eagle,
    MultiToken,
    Pard,
    Suffix,
    SuffixAutomaton,
)
from specpipe.core.contracts import Role
from specpipe.core.divisibility import ONE_RANK, Parallel
from specpipe.core.model import ModelConfig
from specpipe.engine.backend import BuildRequest

# method -> the options with which a step has that many draft tokens
_DRAFTING: Mapping[str, "partial[Speculation]"] = {
    "prompt_lookup": partial(PromptLookup, "prompt_lookup"),
    "draft_model": partial(DraftModel, "draft_model", DraftOptions("draft")),
    "hybrid": partial(Hybrid, "hybrid", None),
    "medusa": partial(Medusa, "medusa", "heads"),
    "lookahead": partial(Lookahead, "lookahead", 1, 2),
    "redrafter": partial(ReDrafter, "redrafter", "drafter", draft_len_per_beam=1),
    "eagle": partial(Eagle, "eagle", "drafter"),
    "eagle3": partial(Eagle3, "eagle3", Eagle3Draft("draft")),
    "mtp": partial(MultiToken, "mtp"),
    "suffix": partial(Suffix, "suffix"),
    "pard": partial(Pard, "pard", Eagle3Draft("draft")),
    "dflash": partial(DFlash, "dflash", Eagle3Draft("draft")),
    "suffix_automaton": partial(SuffixAutomaton, "suffix_automaton"),
}


def drafting(method: str, nodes: int, **changes: object) -> Speculation:
    """Return options of a method that drafts `nodes` tokens a step, with the changes it knows."""
    if method == "none":
        return NoSpeculation()
    made = _DRAFTING[method]
    options = made(nodes)
    return replace(options, **_known(type(options), changes))  # type: ignore[arg-type]


def build_request(
    model: ModelConfig,
    role: Role = "target",
    *,
    method: str = "none",
    draft_nodes: int = 0,
    parallel: Parallel = ONE_RANK,
    release: str | None = None,
    **changes: object,
) -> BuildRequest:
    """Return a request; `changes` are fields of it, of its engine options or of its method's."""
    engine = {**asdict(parallel), "tensorrt_llm": release, **_known(EngineOptions, changes)}
    return BuildRequest(
        role,
        model,
        EngineOptions("tensorrt", **engine),  # type: ignore[arg-type]
        drafting(method, draft_nodes, **changes),
        **_known(BuildRequest, changes),  # type: ignore[arg-type]
    )


def _known(record: type, changes: Mapping[str, object]) -> dict[str, object]:
    names = {field.name for field in fields(record)}
    return {name: value for name, value in changes.items() if name in names}

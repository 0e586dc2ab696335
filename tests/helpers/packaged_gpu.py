"""Runs packaged as for GPUs, whose engines are strict stand-ins that count."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tritonclient.grpc import model_config_pb2 as pb

from specpipe.config.run_config import RunConfig, read_config
from specpipe.config.speculation import (
    DraftModel,
    Lookahead,
    Medusa,
    NoSpeculation,
    ReDrafter,
    Speculation,
)
from specpipe.config.upstream_methods import Eagle
from specpipe.core.contracts import Sampling
from specpipe.core.guide import Guide
from specpipe.core.model import ModelConfig
from specpipe.plan.plan import make_requests
from specpipe.repository.description import read_endpoint
from specpipe.repository.render import parse
from specpipe.repository.write import RepositoryPlan, write_repository
from specpipe.runtime.exchange import EngineProgress, Request
from specpipe.speculate.decode import Limits
from tests.helpers.cpp_backend import (
    CppBackend,
    EngineLimits,
    EngineRequest,
)
from tests.helpers.python_backend import import_sources

VOCABULARY, END = 16, 15
LLAMA = ModelConfig(
    architecture="LlamaForCausalLM", dtype="bfloat16", hidden_size=64, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=4, head_size=16, intermediate_size=128,
    vocab_size=VOCABULARY, max_position_embeddings=4096, norm_epsilon=1e-5, rotary_base=1e4,
)  # fmt: skip
BASE = read_config(Path("model_configs/llama8b_lookahead.yaml"))
TREE = ((0,), (1,), (0, 0))
METHODS: dict[str, Speculation] = {
    "none": NoSpeculation("none"),
    "draft_model": replace(
        read_config(Path("model_configs/llama70b_draft7b.yaml")).speculation, num_draft_tokens=3
    ),
    "medusa": Medusa("medusa", "heads", 3, TREE),
    "lookahead": Lookahead("lookahead", window_size=2, ngram_size=3, verification_set_size=2),
    "eagle": Eagle("eagle", "drafter").with_tree(TREE),
    "redrafter": ReDrafter("redrafter", "drafter", 2, 2),
}
Serve = Callable[..., "Served"]


def following(sequence: tuple[int, ...]) -> int:
    """Return the next token of the engines' language: it counts, but for the end token."""
    return (sequence[-1] * 3 + len(sequence)) % END


def guided(kind: str, text: str | None) -> tuple[int, ...]:
    """Return the answer under a guide, in which its type and its text can be seen."""
    return (len(kind), len(text or ""), END)


def decode(asked: EngineRequest) -> Iterator[tuple[int, ...]]:
    """Verify a draft in one step, or decode two tokens a step."""
    sequence, left, width = list(asked.prompt), asked.max_tokens, 2
    if asked.guide is not None:
        yield guided(*asked.guide)[:left]
        return
    if asked.draft is not None:
        accepted = 0
        while accepted < len(asked.draft) and following(tuple(sequence)) == asked.draft[accepted]:
            sequence.append(asked.draft[accepted])
            accepted += 1
        width = left = min(left, accepted + 1)
        sequence = sequence[: len(asked.prompt)]
    while left > 0:
        step = []
        for _ in range(min(width, left)):
            step.append(following(tuple(sequence)))
            sequence.append(step[-1])
        left -= len(step)
        yield tuple(step)


def expected(prompt: tuple[int, ...], count: int) -> list[int]:
    """Return the answer of plain decoding."""
    sequence = prompt
    for _ in range(count):
        sequence = (*sequence, following(sequence))
    return list(sequence[len(prompt) :])


class Served:
    """A packaged run whose engines are strict stand-ins."""

    def __init__(self, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.endpoint = read_endpoint(repository)
        options = config_of(repository, "tensorrt_llm_bls").parameters
        self.models = {
            name: CppBackend(config_of(repository, name), decode, limits_of(name, options))
            for name in ("tensorrt_llm", "tensorrt_llm_draft")
            if (repository / name).exists()
        }
        sources = import_sources(self.models, monkeypatch)
        values = {name: value.string_value for name, value in options.items()}
        self.source = sources.bls_source(values, "tensorrt_llm_bls", (END,))

    def answer(self, count: int, **changes: Any) -> list[EngineProgress]:
        request = Request("", (1, 2, 3), changes.pop("sampling", Sampling()), Limits(count))
        return list(self.source.loop(replace(request, **changes)))

    def ask(self, guide: Guide, **changes: Any) -> list[int]:
        """Return the tokens that a text model would get."""
        steps: list[EngineProgress] = []
        request = Request("", (1, 2, 3), Sampling(end_ids=(END,)), Limits(9), guide=guide)

        def take(step: EngineProgress) -> bool:
            steps.append(step)
            return step.finish is not None

        self.source.ask(replace(request, **changes), take, lambda: False)
        return tokens(steps)


def limits_of(name: str, options: Any) -> EngineLimits:
    drafts = int(options["num_draft_tokens"].string_value) if name == "tensorrt_llm" else 0
    return EngineLimits(max_draft_len=drafts, vocab_size=VOCABULARY)


def config_of(repository: Path, model: str) -> pb.ModelConfig:
    return parse((repository / model / "config.pbtxt").read_text())


def package(config: RunConfig, release: str, folder: Path) -> Path:
    roles = ["target", "draft"] if isinstance(config.speculation, DraftModel) else ["target"]
    for name in (*roles, "tokenizer", "repository"):
        (folder / name).mkdir()
    write_tokenizer(folder / "tokenizer")
    plan = RepositoryPlan(
        config, {role: folder / role for role in roles}, folder / "tokenizer",
        make_requests(config, dict.fromkeys(roles, LLAMA)), release, Path("/models"),
    )  # fmt: skip
    write_repository(plan, folder / "repository")
    return folder / "repository"


def write_tokenizer(folder: Path) -> None:
    words = {f"w{number}": number for number in range(VOCABULARY)}
    Tokenizer(WordLevel(words, "w0")).save(str(folder / "tokenizer.json"))
    facts = {"vocab_size": VOCABULARY, "end_ids": [END], "pad_id": END, "chat": None}
    (folder / "tokenizer_facts.json").write_text(json.dumps(facts))


def tokens(steps: list[EngineProgress]) -> list[int]:
    return [token for step in steps for token in step.tokens]

"""The seams: what runners, proposers and backends promise, and the records they exchange.

A *sequence* is the prompt and every token committed so far. Its last token is the *root*: a draft
is a tree of guesses under it, and one call of the target scores the root and every guess.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from specpipe.model import Dtype as Dtype
from specpipe.model import ModelConfig as ModelConfig

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Logits = NDArray[np.float32]

Role = Literal["target", "draft"]
Quantization = Literal["none", "int8", "int4", "fp8", "int4_awq", "int8_sq", "nvfp4"]
CacheQuantization = Literal["none", "int8", "fp8"]

ROOT = -1


@dataclass(frozen=True, eq=False)
class Draft:
    """Guessed tokens, a tree under the last committed token."""

    tokens: Ints  # [n]     parents come before children
    parents: Ints  # [n]    ROOT (-1): directly under the last committed token
    probs: Floats | None = None  # [n, V]  what each was drawn from; None: chosen with certainty
    scratch: int = 0  # the last k nodes are scored but may never be accepted

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def depth(self) -> int:
        """Count the tokens of the longest path that may be accepted."""
        below = {ROOT: 0}
        for node, parent in enumerate(self.parents[: len(self) - self.scratch].tolist()):
            below[node] = below[parent] + 1
        return max(below.values())


def chain(tokens: Sequence[int] | Ints, probs: Floats | None = None) -> Draft:
    """Return the draft in which every token follows the one before."""
    ids = np.asarray(tokens, np.int64)
    return Draft(ids, np.arange(-1, len(ids) - 1, dtype=np.int64), probs)


EMPTY = chain([])


@dataclass(frozen=True, eq=False)
class Scores:
    """The target's view of the root (row 0) and of draft node i (row i + 1)."""

    logits: Logits  # [1 + n, V]
    hidden: Logits | None = None  # [1 + n, D]  last hidden state, after the final norm


@dataclass(frozen=True, eq=False)
class Guesses:
    """What K heads guess from one hidden state: head k the token k + 2 places on."""

    tokens: Ints  # [K, W]  likeliest first
    probs: Floats  # [K, W]  what each head gives its guess


@dataclass(frozen=True)
class Verdict:
    """What one step decided: the accepted nodes, root first, and the token that follows them."""

    path: tuple[int, ...]  # indices into the draft
    next_token: int

    def emitted(self, draft: Draft) -> list[int]:
        """Return the tokens that the step commits: the accepted ones of `draft`, and the next."""
        return [*(int(draft.tokens[node]) for node in self.path), self.next_token]


@dataclass(frozen=True)
class Sampling:
    """How one request picks its tokens: the field names are those of upstream's tensors.

    Applied at every position with the history of that position: repetition, presence and frequency
    penalties (over prompt and output, as TensorRT-LLM counts), `min_tokens`, `bad_words`, then
    temperature, top_k, top_p.
    """

    temperature: float = 1.0
    top_k: int = 1  # 0: no limit; 1: greedy
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: int = 0  # end_id cannot be chosen before
    end_id: int = -1  # -1: none
    bad_words: tuple[tuple[int, ...], ...] = ()
    seed: int = 0

    @property
    def greedy(self) -> bool:
        """Whether every token is the most likely one."""
        return self.top_k == 1 or self.temperature == 0


class Runner(Protocol):
    """One sequence in a loaded engine."""

    vocab_size: int
    max_seq_len: int

    def start(self, prompt: Sequence[int]) -> None:
        """Forget the old sequence and take `prompt` (at least one token)."""

    def score(self, draft: Draft) -> Scores:
        """Evaluate the root and the nodes of `draft`; commits nothing.

        The arrays may be views of the engine's memory: they are valid until the next call of any
        runner of that engine.
        """

    def commit(self, draft: Draft, verdict: Verdict) -> None:
        """Append the accepted path and the next token to the sequence; drop every other row."""

    def follow(self, sequence: Sequence[int]) -> None:
        """Become `sequence`, keeping what was computed for the longest common prefix."""

    def guess(self, hidden: Logits) -> Guesses:
        """Ask the engine's heads what follows a hidden state [D] of `score`.

        Raises Unsupported if the engine was built without heads.
        """
        ...


class LoadedEngine(Protocol):
    """An engine in memory; its runners share the weights and must be used from one thread."""

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        ...

    @property
    def max_seq_len(self) -> int:
        """Most tokens in one sequence, prompt and output."""
        ...

    @property
    def pads_steps(self) -> bool:
        """Whether a sequence that speculates always pays for the full `step_width`."""
        ...

    def runner(self, step_width: int = 0) -> Runner:
        """Return a runner of its own KV cache, for steps of up to `step_width` rows."""
        ...

    def trim(self) -> None:
        """Give back memory that only loading and the first steps needed."""


class Proposer(Protocol):
    """A source of drafts: draft model, prompt lookup, ...; asked for facts, never for its name."""

    draft_nodes: int  # at most this many tokens are scored beside the root

    def start(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """Begin a new sequence; `sampling` is what the target's tokens will be picked with."""

    def propose(self, limit: int) -> Draft:
        """Guess at most `limit` tokens deep, scratch nodes apart; nothing if it is not above 0.

        An empty draft is always allowed. Guesses must not depend on the verifier's coming draws.
        """
        ...

    def observe(self, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """Learn what the last step committed; its draft may be empty or of another proposer."""


@dataclass(frozen=True)
class Rejection:
    """One reason why something cannot be done, and what to change."""

    reason: str
    hint: str

    def __str__(self) -> str:
        return f"{self.reason}; {self.hint}"


@dataclass(frozen=True)
class Parallel:
    """How one model is spread over GPUs: every layer over `tp_size`, the layers over `pp_size`.

    Of the `tp_size` ranks, groups of `moe_ep_size` share out the experts. The embedding is on every
    rank unless `use_parallel_embedding` cuts it, along the vocabulary (0) or the hidden size (1).
    """

    tp_size: int = 1
    pp_size: int = 1
    moe_ep_size: int = 1
    use_parallel_embedding: bool = False
    embedding_sharding_dim: int = 0

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.tp_size * self.pp_size

    @property
    def moe_tp_size(self) -> int:
        """Over how many ranks each expert is spread."""
        return self.tp_size // self.moe_ep_size


ONE_RANK = Parallel()


@dataclass(frozen=True)
class BuildRequest:
    """Everything a backend may know when it is asked whether, and then to, build one engine."""

    role: Role
    model: ModelConfig
    dtype: Dtype
    quantization: str
    method: str
    draft_nodes: int
    max_batch_size: int
    max_input_len: int
    max_seq_len: int
    gpu: str | None = None
    parallel: Parallel = ONE_RANK
    kv_cache_quantization: str = "none"
    sm: int | None = None  # compute capability of `gpu`, without the dot; None: not known
    release: str | None = None  # of TensorRT-LLM; None: the default one
    sources: Mapping[Role, str] = field(default_factory=dict)  # the Hugging Face models
    ngram_size: int = 0  # longest match that prompt lookup tries
    max_concurrency: int | None = None  # above so many sequences nothing is guessed
    guess_vocabulary: int = 0  # the first tokens, which alone Medusa heads guess; 0: all
    streams: bool = True  # whether answers are served piece by piece


@dataclass(frozen=True)
class Footprint:
    """What a served engine takes on each of its GPUs, or on the CPU; in bytes."""

    weights: int  # of the fullest rank, heads included
    kv_per_token: int  # a token of one sequence in the KV cache
    kv_tokens: int  # tokens for which there must be room: every sequence at its longest
    activations: int  # work buffers of the largest step
    runtime: int  # libraries, contexts, communication
    looked_up: int = 0  # the part of the weights that steps only pick rows from
    guesser: int = 0  # the part that is read for every guessed token and for no other

    @property
    def fixed(self) -> int:
        """All but the KV cache."""
        return self.weights + self.activations + self.runtime

    @property
    def total(self) -> int:
        """All, with the KV cache that was asked for."""
        return self.fixed + self.kv_per_token * self.kv_tokens


@dataclass(frozen=True)
class Command:
    """A program that build would run, as an argument list."""

    stage: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)

    def options(self) -> dict[str, str]:
        """Return the values of the `--flags`; a flag without a value has the empty one."""
        found: dict[str, str] = {}
        for word, after in zip(self.argv, (*self.argv[1:], "--"), strict=True):
            if word.startswith("--"):
                found[word] = "" if after.startswith("--") else after
        return found


Facts = Mapping[str, str | int | float | bool]


@dataclass(frozen=True)
class Workshop:
    """How a backend may work: whom it tells what it does, and where its programs run."""

    notify: Callable[[str], None] = lambda text: None
    runtime: str | None = None  # docker, podman: in the container of the release; None: here


HERE = Workshop()


class Backend(Protocol):
    """Turns TensorRT-LLM checkpoints into engines for one kind of machine."""

    @property
    def whole_heads(self) -> bool:
        """Whether checkpoints hold Medusa heads in full, in upstream's layout."""
        ...

    @property
    def serves_sources(self) -> bool:
        """Whether Hugging Face models are served as they are: none is converted, and of a run only
        the target is built, which knows its draft.
        """
        ...

    def check(self, request: BuildRequest) -> list[Rejection]:
        """Return every reason why `request` cannot be built; empty means that it can."""
        ...

    def versions(self, release: str | None = None) -> Mapping[str, str]:
        """Name what the engine's bytes depend on beside its inputs (library versions).

        `release` picks one of several, as `BuildRequest.release` does.
        """
        ...

    def build(
        self, request: BuildRequest, checkpoint: Path, out: Path, shop: Workshop = HERE
    ) -> Facts:
        """Compile `checkpoint` into the empty folder `out`; return what its manifest remembers.

        Logs and caches may lie beside `out`. Raises Unsupported if this machine cannot do it,
        StageFailed if it began and did not succeed.
        """
        ...

    def commands(self, request: BuildRequest, checkpoint: Path, out: Path) -> list[Command]:
        """Return the programs that `build` would start; empty if it runs in this process."""
        ...

    def files(self, request: BuildRequest) -> Mapping[str, str]:
        """Return the text files that `build` would write, where they are known beforehand."""
        ...

    def footprint(self, request: BuildRequest) -> Footprint:
        """Estimate what the served engine takes."""
        ...

    def load(self, engine: Path) -> LoadedEngine:
        """Open a built engine; only where it can be driven from here."""
        ...

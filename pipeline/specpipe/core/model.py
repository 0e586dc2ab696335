"""The facts of a decoder-only model, and what follows from them; the keys of config.json.

Engines are built from these facts only: no code asks for an architecture by its name.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from specpipe.core.drafters import Eagle3Drafter, RecurrentDrafter

Dtype = Literal["float32", "float16", "bfloat16"]
Quantization = Literal["none", "int8", "int4", "fp8", "int4_awq", "int8_sq", "nvfp4"]
CacheQuantization = Literal["none", "int8", "fp8"]
# rope_gptj rotates neighbouring values of a head, the other two the halves of it.
Rotary = Literal["rope_gpt_neox", "rope_gptj", "long_rope"]
Positions = Rotary | Literal["learned_absolute", "alibi_with_scale"]
Residual = Literal["sequential", "parallel", "parallel_one_norm"]
QkNorm = Literal["head", "own_heads", "projection"]

# Keys that are written only if there is something to say: how their names begin.
_IF_ANY = ("num_medusa", "moe_", "num_eagle", "max_non_leaves", "eagle_net", "eagle3")


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in the place of every MLP: keys of upstream's `MoeConfig`."""

    num_experts: int
    top_k: int
    normalization_mode: int = 1  # 0: the gates as they are; 1: those of the chosen sum to one


@dataclass(frozen=True)
class Arithmetic:
    """What TensorRT-LLM's class of an architecture does by default: config.json has no key for it.

    The defaults mean: as Llama.
    """

    layer_norm: bool = False  # LayerNorm in the place of RMSNorm
    norm_bias: bool = True  # of LayerNorm
    gated_mlp: bool = True
    dense_bias: bool = False  # of attention's output projection
    head_bias: bool = False  # of lm_head
    residual: Residual = "sequential"  # parallel: attention and MLP read the same input
    pre_norms: bool = True  # of what attention and the MLP read
    post_norms: bool = False  # attention's and the MLP's output are normed too
    # What is normed by itself, if queries and keys are: heads, with the same weights or with
    # weights of their own, or all heads together.
    qk_norm: QkNorm = "head"
    mlp_norm: str = "post_layernorm"  # what the norm before the MLP is called
    embedding_scale: float = 1.0
    residual_scale: float = 1.0  # of what attention and the MLP add to their input
    logit_scale: float = 1.0
    shared_expert_gate: bool = False  # a sigmoid gate weighs the shared expert
    unrotated_layers: tuple[int, ...] = ()  # of a rotary model, those without positions
    local_layers: tuple[int, ...] = ()  # those that rotate by another base, without scaling
    local_rotary_base: float = 0.0  # that base
    sliding_windows: tuple[int, ...] = ()  # of every layer, 0: sees all; empty: no layer has one


@dataclass(frozen=True)
class ModelConfig:
    """The facts of a decoder-only model: the keys of a TensorRT-LLM checkpoint's config.json.

    Names follow upstream's `PretrainedConfig` and its children; `vocab_size` is unpadded. What has
    a default means, by default: as Llama.
    """

    architecture: str
    dtype: Dtype
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_size: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    norm_epsilon: float
    rotary_base: float
    rotary_scaling: Mapping[str, Any] | None = None  # HF's `rope_scaling`, whole
    tie_word_embeddings: bool = False
    hidden_act: str = "silu"
    num_medusa_heads: int = 0  # heads that lie in the same checkpoint
    num_medusa_layers: int = 0  # residual layers of each
    redrafter: RecurrentDrafter | None = None  # in the same checkpoint
    num_eagle_layers: int = 0  # levels of tree that an EAGLE drafter in the same checkpoint guesses
    max_non_leaves_per_layer: int = 0  # nodes of a level that it may go on from
    eagle_net_config: "ModelConfig | None" = None  # the drafter itself, a decoder of one layer
    eagle3: Eagle3Drafter | None = None  # in the same checkpoint
    position_embedding_type: Positions = "rope_gpt_neox"
    rotary_embedding_dim: int | None = None  # of each head; None: all of it
    attn_bias: bool = False  # of query, key and value
    mlp_bias: bool = False
    qk_layernorm: bool = False  # queries and keys are normed, as `arithmetic.qk_norm` tells
    query_pre_attn_scalar: float | None = None  # scores are divided by its root; None: head_size
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    moe: Experts | None = None
    moe_intermediate_size: int = 0  # of one expert; 0: intermediate_size
    moe_shared_expert_intermediate_size: int = 0  # 0: there is none
    arithmetic: Arithmetic = Arithmetic()
    upstream_limits: tuple[str, ...] = ()  # what TensorRT-LLM's class would compute otherwise
    upstream_since: tuple[int, int] | None = (0, 0)  # the first release with the class; None: none
    stored_bytes: int = 0  # of weights that are served as their files are; 0: by the parameters

    @property
    def rotary_dim(self) -> int:
        """Return how many values of a head are rotated; 0 for other kinds of positions."""
        if self.position_embedding_type not in get_args(Rotary):
            return 0
        return self.rotary_embedding_dim or self.head_size

    @property
    def attention_scale(self) -> float:
        """Return what scores are multiplied with before the softmax."""
        return 1 / math.sqrt(self.query_pre_attn_scalar or self.head_size)

    @property
    def qk_norm_sizes(self) -> tuple[int, int]:
        """Return how many weights the norms of queries and of keys have."""
        heads = self.num_attention_heads, self.num_key_value_heads
        query, key = (1, 1) if self.arithmetic.qk_norm == "head" else heads
        return query * self.head_size, key * self.head_size

    @property
    def expert_size(self) -> int:
        """Return the inner width of one expert."""
        return self.moe_intermediate_size or self.intermediate_size

    @property
    def num_experts(self) -> int:
        """Return how many experts a layer has; 0 for plain MLPs."""
        return self.moe.num_experts if self.moe else 0

    @property
    def sliding_window(self) -> int | None:
        """Return how many tokens the most short-sighted layer sees; None: all of them."""
        return min((w for w in self.arithmetic.sliding_windows if w), default=None)

    @property
    def num_parameters(self) -> int:
        """Count weights and biases without heads and drafters (tied embeddings counted once)."""
        how, hidden = self.arithmetic, self.hidden_size
        tables = self.vocab_size * (1 if self.tie_word_embeddings else 2)
        if self.position_embedding_type == "learned_absolute":
            tables += self.max_position_embeddings
        norms = {"sequential": 2, "parallel": 2, "parallel_one_norm": 1}[
            how.residual
        ] * how.pre_norms
        norms += 2 * how.post_norms
        norm = hidden * (2 if how.layer_norm and how.norm_bias else 1)
        layer = self._attention_parameters() + self._mlp_parameters() + norms * norm
        head = self.vocab_size if how.head_bias else 0
        return tables * hidden + self.num_hidden_layers * layer + norm + head

    def _attention_parameters(self) -> int:
        query = self.num_attention_heads * self.head_size
        qkv = query + 2 * self.num_key_value_heads * self.head_size
        biases = qkv * self.attn_bias + self.hidden_size * self.arithmetic.dense_bias
        norms = sum(self.qk_norm_sizes) * self.qk_layernorm
        return (qkv + query) * self.hidden_size + biases + norms

    def _mlp_parameters(self) -> int:
        into = 2 if self.arithmetic.gated_mlp else 1
        hidden, inner = self.hidden_size, self.intermediate_size
        if self.moe is None:
            biases = into * inner + hidden if self.mlp_bias else 0
            return (into + 1) * inner * hidden + biases
        experts = self.moe.num_experts * (1 + (into + 1) * self.expert_size) * hidden
        shared = (into + 1) * self.moe_shared_expert_intermediate_size * hidden
        return experts + shared + hidden * self.arithmetic.shared_expert_gate

    @property
    def drafter_module(self) -> str:
        """Return the name of the module that drafts in the same checkpoint; empty if none does."""
        here = {
            "medusa_heads": self.num_medusa_heads,
            "eagle_nets": self.num_eagle_layers,
            "drafter": self.redrafter,
            "eagle3": self.eagle3,
        }
        return next((name for name, there in here.items() if there), "")

    @property
    def drafter_rounds(self) -> int:
        """Count how often a step runs that module: once, or for every token of a beam."""
        return self.redrafter.draft_len_per_beam if self.redrafter else 1

    def drafter_parameters(self, vocab_size: int) -> int:
        """Count the weights of that module, with output layers of `vocab_size` rows.

        Left out are embeddings, of which every copy of an EAGLE drafter has one.
        """
        if self.redrafter:
            shapes = self.redrafter.shapes(self.hidden_size, vocab_size).values()
            return sum(math.prod(shape) for shape in shapes)
        if self.eagle3:
            return self.eagle3.parameters(self.hidden_size)
        output = vocab_size * self.hidden_size
        if (net := self.eagle_net_config) is not None:
            tables = net.vocab_size * (1 if net.tie_word_embeddings else 2)
            layer = net.num_parameters - tables * net.hidden_size
            fc = 2 * net.hidden_size**2 - net.hidden_size  # and a bias, but two norms are missing
            return self.num_eagle_layers * (layer + fc + output)
        residual = self.num_medusa_layers * self.hidden_size * (self.hidden_size + 1)
        return self.num_medusa_heads * (residual + output)

    def kv_bytes(self, tokens: int, *, bytes_per_value: int) -> int:
        """Size of the KV cache of `tokens` tokens, in bytes; windowed layers keep all of them."""
        row = 2 * self.num_key_value_heads * self.head_size * bytes_per_value
        return tokens * self.num_hidden_layers * row

    def to_json(self) -> dict[str, Any]:
        """Return the facts under the keys that `model_from_json` and upstream read.

        `arithmetic` is not among them: upstream has no such key.
        """
        facts = asdict(self)
        if (drafter := facts.pop("redrafter")) is not None:
            facts |= {f"redrafter_{name}": value for name, value in drafter.items()}
            facts["redrafter_hidden_size"] = self.hidden_size
        facts["rotary_embedding_dim"] = self.rotary_dim
        if self.eagle_net_config is not None:
            facts["eagle_net_config"] = self.eagle_net_config.to_json()
        if self.eagle3 is not None:
            facts["eagle3"] = self.eagle3.to_json()
        absent = ["arithmetic", "upstream_limits", "upstream_since", "stored_bytes"]
        absent += [n for n in ("moe", "query_pre_attn_scalar") if facts[n] is None]
        absent += [n for n in facts if n.startswith(_IF_ANY) and not facts[n]]
        absent += [n for n in facts if n.endswith("softcapping") and facts[n] is None]
        return {name: value for name, value in facts.items() if name not in absent}


def model_from_json(raw: Mapping[str, Any]) -> ModelConfig:
    """Return the facts in a parsed config.json; further keys are ignored.

    What upstream cannot do is not among them: that is for those who plan a checkpoint. Raises
    TypeError if a key without a default is missing.
    """
    known = _known(ModelConfig, raw)
    if known.get("moe") is not None:
        known["moe"] = Experts(**_known(Experts, known["moe"]))
    if known.get("eagle_net_config") is not None:
        known["eagle_net_config"] = model_from_json(known["eagle_net_config"])
    if known.get("eagle3") is not None:
        given = _known(Eagle3Drafter, known["eagle3"])
        ids, net = tuple(given["layer_ids"]), model_from_json(given["net"])
        known["eagle3"] = Eagle3Drafter(**{**given, "layer_ids": ids, "net": net})
    if "arithmetic" in known:
        how = _known(Arithmetic, known["arithmetic"])
        how |= {name: tuple(value) for name, value in how.items() if isinstance(value, list)}
        known["arithmetic"] = Arithmetic(**how)
    prefix = "redrafter_"
    drafter = {n.removeprefix(prefix): v for n, v in raw.items() if n.startswith(prefix)}
    if drafter:
        known["redrafter"] = RecurrentDrafter(**_known(RecurrentDrafter, drafter))
    return ModelConfig(**known)


def _known(
    record: type[ModelConfig | Experts | Arithmetic | RecurrentDrafter | Eagle3Drafter],
    raw: Mapping[str, Any],
) -> dict[str, Any]:
    return {f.name: raw[f.name] for f in fields(record) if f.name in raw}


def yarn_attention(scaling: Mapping[str, Any]) -> float:
    """Return the factor of cosines and sines that follows from yarn's `factor` (2309.00071).

    With `mscale` and `mscale_all_dim` it is the ratio of two (DeepSeek-V2).
    """
    factor = float(scaling["factor"])
    if factor <= 1:
        return 1.0
    one, other = (
        0.1 * float(scaling.get(key) or 1.0) * math.log(factor) + 1
        for key in ("mscale", "mscale_all_dim")
    )
    paired = scaling.get("mscale") and scaling.get("mscale_all_dim")
    return one / other if paired else 0.1 * math.log(factor) + 1


def redrafter_class(architecture: str, release: str) -> str | None:
    """Return TensorRT-LLM's class for a target with a ReDrafter in its checkpoint; None: no such.

    Up to the 0.17 line one class for Llama only, in the 1.x sources one for Llama and one for
    Qwen2 (tensorrt_llm/models/__init__.py, examples/redrafter/convert_checkpoint.py).
    """
    if release.startswith("0."):
        return {"LlamaForCausalLM": "ReDrafterForCausalLM"}.get(architecture)
    later = {"LlamaForCausalLM": "ReDrafterForLLaMALM", "Qwen2ForCausalLM": "ReDrafterForQWenLM"}
    return later.get(architecture)

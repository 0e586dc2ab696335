"""The facts of drafters that lie in their target's checkpoint, each a part of `ModelConfig`.

Not here: Medusa heads and EAGLE-1 drafters, whose facts are plain keys of the model.
"""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specpipe.core.model import ModelConfig

TOKEN_MAP = "token_map"
"""Tensor of heads or a drafter: ids of tokens, the most frequent of its training first."""


@dataclass(frozen=True)
class RecurrentDrafter:
    """ReDrafter's net (2403.09919) in its target's checkpoint, and the beams that it lays out.

    It reads a hidden state of the target and a recurrent state of the same size; `exit_dim` is the
    width of its residual layers. Keys of config.json: these names after `redrafter_`.
    """

    num_layers: int
    exit_dim: int
    is_rnn: bool  # else the state is the sum of the drafted tokens' embeddings
    num_beams: int = 5
    draft_len_per_beam: int = 5
    greedy_search: bool = True

    def shapes(self, hidden_size: int, vocab_size: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor, by its name in the module `drafter`."""
        wide, hidden = self.exit_dim, hidden_size
        into = (("input_proj", 2 * hidden, wide),) if wide != 2 * hidden else ()
        layers = ((f"layers.{n}.linear", wide, wide) for n in range(self.num_layers))
        state = (("rnn_u", hidden, hidden),) if self.is_rnn else ()
        found: dict[str, tuple[int, ...]] = {}
        for name, columns, rows in (*into, *layers, *state):
            found |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
        found["lm_head.weight"] = (vocab_size, wide)
        return found | ({"rnn_w.weight": (hidden, hidden)} if self.is_rnn else {})


@dataclass(frozen=True)
class Eagle3Drafter:
    """An EAGLE-3 drafter (2503.01840) in its target's checkpoint; only the CPU engine runs it."""

    net: "ModelConfig"  # its decoder layer, whose input is an embedding and a hidden state
    draft_vocab_size: int  # tokens that it can draft
    layer_ids: tuple[int, ...]  # it reads the input of these layers of the target
    norm_before_residual: bool = False  # the layer adds to the normed hidden state
    norm_output: bool = False  # a draft step reads the last output after the final norm

    def parameters(self, hidden_size: int) -> int:
        """Count the weights, embeddings apart, for a target of this hidden size."""
        net, tables = self.net, self.net.vocab_size
        layer = net.num_parameters - tables * net.hidden_size * (2 - net.tie_word_embeddings)
        heads = net.num_attention_heads + 2 * net.num_key_value_heads
        wider = heads * net.head_size + len(self.layer_ids) * hidden_size + 1
        return layer + (wider + self.draft_vocab_size) * net.hidden_size

    def to_json(self) -> dict[str, Any]:
        """Return the facts under the keys that `model_from_json` reads."""
        return {**asdict(self), "net": self.net.to_json()}

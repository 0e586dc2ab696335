"""ReDrafter's drafters on disk, in three spellings, as tensors of TensorRT-LLM's names.

- Apple's: `lm_head.{layer}.linear.weight`, `lm_head.{layers}.weight`, `input_proj.weight`;
- the plural: `lm_heads.`, `input_projs.`;
- without names: `0.{layer}.linear.weight`, `0.{layers}.weight`;

and, in all of them, `rnn_u` and `rnn_w` if the state is a recurrent one, and `token_map` if our
training ranked the tokens, for our own engine. The tensors determine the drafter's layers;
config.json, which TensorRT-LLM's converter reads (examples/redrafter/convert_checkpoint.py), must
agree. A drafter without an output layer, as `specpipe train redrafter` writes it, shares the
target's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from specpipe.checkpoint.drafter import (
    CALIBRATION,
    RenamedTensors,
    output_copies,
    planned_token_map,
    read_calibration,
)
from specpipe.checkpoint.drafter_method import refuse_other_drafters
from specpipe.checkpoint.families import HfConfig, TensorPlan
from specpipe.checkpoint.medusa import FILES as HEADS_FILES
from specpipe.checkpoint.plain_files import read_json
from specpipe.checkpoint.redrafter_tensors import MODULE, OUTPUT, canonical, planned_drafter
from specpipe.checkpoint.source import TensorReader, read_tensors
from specpipe.checkpoint.weight_files import weight_files
from specpipe.config.speculation import ReDrafter
from specpipe.core.contracts import Role
from specpipe.core.drafters import TOKEN_MAP, RecurrentDrafter
from specpipe.core.errors import ConfigError, Rejection, Unsupported
from specpipe.core.model import ModelConfig, redrafter_class

_EXPECTED = (
    "model.safetensors, as `specpipe train redrafter` writes it into engines/NAME/train/redrafter, "
    "or Apple's model.pt"
)
# keys of the drafter's config.json -> the facts that its tensors tell
_TOLD = {"num_draft_layers": "num_layers", "exit_dim": "exit_dim", "rnn": "is_rnn"}


@dataclass(frozen=True)
class RecurrentSource(RenamedTensors):
    """A drafter that was found, but not read, and how it is to be written; see `DrafterSource`."""

    net: RecurrentDrafter
    hidden_size: int
    vocab_size: int
    release: str  # of TensorRT-LLM, which decides the name of the class; "": for our own engine
    shares_output: bool = False  # its output layer is the target's LM head, not a tensor of its own
    accuracy: tuple[tuple[float, ...], ...] | None = None  # [steps, ranks], see `trees.grow_tree`
    num_ranked: int = 0  # tokens of its token map

    @property
    def summary(self) -> str:
        """Return the net's layers in words."""
        state = "a recurrent state" if self.net.is_rnn else "a sum of embeddings"
        layers = f"{self.net.num_layers} layer{'s'[: self.net.num_layers > 1]}"
        return f"{layers} of {self.net.exit_dim} values on {state}"

    def options(self) -> dict[str, str]:
        """Return the beams, which the checkpoint fixes, and what its class depends on."""
        net = self.net
        return {
            "num_beams": str(net.num_beams),
            "draft_len_per_beam": str(net.draft_len_per_beam),
            "greedy_search": str(net.greedy_search),
            "release": self.release,
        }

    def joined(self, model: ModelConfig) -> ModelConfig:
        """Return the facts of a target and its drafter in one checkpoint."""
        return replace(model, redrafter=self.net)

    def check(self, role: Role, model: ModelConfig) -> list[Rejection]:
        """Refuse a drafter that was trained for other sizes."""
        sizes = {
            "hidden states of {} values": (self.hidden_size, model.hidden_size),
            "a vocabulary of {} tokens": (self.vocab_size, model.vocab_size),
        }
        return [
            Rejection(
                f"the drafter was trained for {what.format(ours)}, the {role} has {theirs}",
                f"use a drafter that was trained for this {role}",
            )
            for what, (ours, theirs) in sizes.items()
            if ours != theirs
        ]

    def tensors(self, model: ModelConfig) -> list[TensorPlan]:
        """List the drafter's tensors, in the order in which they are written."""
        plans = planned_drafter(model)
        own = [p for p in plans if not (self.shares_output and p.name == OUTPUT)]
        if self.num_ranked and not self.release:
            own.append(planned_token_map(MODULE, self.num_ranked))
        return own

    def shared(self, plans: list[TensorPlan]) -> list[TensorPlan]:
        """List the copy of the target's output layer that upstream needs, if it is shared."""
        copied = self.shares_output and self.release
        return output_copies(plans, [OUTPUT]) if copied else []

    def config(self, hf: HfConfig, written: Mapping[str, Any]) -> dict[str, Any]:
        """Return the class of the whole, and the class that the target has without the drafter.

        Nothing for our own engine. Raises Unsupported if the release has none.
        """
        if not self.release:
            return {}
        base = written["architecture"]
        whole = redrafter_class(base, self.release)
        if whole is None:
            raise Unsupported(f"TensorRT-LLM {self.release} has no ReDrafter on {base}")
        return {"architecture": whole, "base_model_architecture": base}


def open_redrafter(path: Path, options: ReDrafter, release: str) -> RecurrentSource:
    """Find the drafter in a folder; reads names and shapes only.

    Raises ConfigError if there is none, or if its tensors do not make one, Unsupported if they are
    a drafter of another method.
    """
    weights = _find(path)
    with read_tensors(weights) as reader:
        refuse_other_drafters(path, reader.names(), "redrafter", "a ReDrafter")
        names = _names(path, reader)
        shapes = {ours: reader.shape(theirs) for ours, theirs in names.items()}
    ranked = shapes.pop(f"{MODULE}.{TOKEN_MAP}", (0,))
    net, hidden, vocab = _measure(path, shapes, options)
    _compare_config(path, net, hidden, vocab)
    _check_recurrence(path)
    return RecurrentSource(
        path,
        weights,
        names,
        net,
        hidden,
        vocab,
        release,
        shares_output=OUTPUT not in shapes,
        accuracy=read_calibration(path, None),
        num_ranked=prod(ranked),
    )


def trained_redrafter(
    path: Path, model: ModelConfig, options: ReDrafter, release: str
) -> RecurrentSource:
    """Return the facts of a drafter as Apple's recipe trains one for `model`, only for planning.

    Two layers of twice the hidden size on a recurrent state (recurrent_drafting/cmd/train.sh).
    """
    net = _with_beams(RecurrentDrafter(2, 2 * model.hidden_size, is_rnn=True), options)
    return RecurrentSource(path, (), {}, net, model.hidden_size, model.vocab_size, release)


def _find(path: Path) -> tuple[Path, ...]:
    if any((path / name).is_file() for name in HEADS_FILES):
        raise Unsupported(
            f"{path}: these are Medusa heads, not a ReDrafter",
            hint="set speculation.method: medusa, or speculation.heads of a hybrid",
        )
    pickled = path / "model.pt"
    if pickled.is_file() and not (path / "model.safetensors").is_file():
        return (pickled,)
    return weight_files(path, expected=_EXPECTED)


def _names(path: Path, reader: TensorReader) -> dict[str, str]:
    """Return TensorRT-LLM's names of the tensors; raises ConfigError if some are no drafter's."""
    names: dict[str, str] = {}
    strange = []
    for theirs in sorted(reader.names()):
        ours = canonical(theirs)
        if ours is None or ours in names:
            strange.append(theirs)
        else:
            names[ours] = theirs
    if strange or not names:
        raise ConfigError(
            f"{path}: not a ReDrafter: {', '.join(strange[:4]) or 'there are no tensors'}",
            hint="known are Apple's names, their plural, and `0.`; each tensor once",
        )
    return names


def _measure(
    path: Path, shapes: Mapping[str, tuple[int, ...]], options: ReDrafter
) -> tuple[RecurrentDrafter, int, int]:
    """Return net, hidden size and vocabulary; raises ConfigError if tensors lack or differ."""
    shares = OUTPUT not in shapes
    vocab, wide = _shared_output(path, shapes) if shares else _matrix(path, shapes, "lm_head")
    layers = 1 + max((int(n.split(".")[2]) for n in shapes if ".layers." in n), default=-1)
    is_rnn = f"{MODULE}.rnn_w.weight" in shapes
    if is_rnn:
        hidden = _matrix(path, shapes, "rnn_w")[1]
    elif f"{MODULE}.input_proj.weight" in shapes:
        hidden = _matrix(path, shapes, "input_proj")[1] // 2
    else:
        hidden = wide // 2
    if shares and wide != hidden:
        raise ConfigError(
            f"{path}: a ReDrafter with {wide} values needs a matrix lm_head, there is none",
            hint=f"only one with {hidden}, as many as the target has, can share the target's",
        )
    net = _with_beams(RecurrentDrafter(layers, wide, is_rnn), options)
    needed = {f"{MODULE}.{name}": s for name, s in net.shapes(hidden, vocab).items()}
    if shares:
        del needed[OUTPUT]
    wrong = sorted(name for name in needed.keys() | shapes if needed.get(name) != shapes.get(name))
    if wrong or not layers:
        raise ConfigError(
            f"{path}: of a ReDrafter with {layers} layers of {wide} values on hidden states of "
            f"{hidden}, these are missing, too much, or of another shape: "
            f"{', '.join(wrong[:4]) or 'its layers'}",
            hint="copy the drafter again; it has an input_proj only if its exit_dim is not twice "
            "the hidden size",
        )
    return net, hidden, vocab


def _shared_output(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Return the shape of the target's output layer: as wide as the layers, rows by config.json."""
    file = path / "config.json"
    rows = read_json(file).get("vocab_size") if file.is_file() else None
    if not isinstance(rows, int):
        raise ConfigError(
            f"{path}: a ReDrafter without lm_head shares its target's, so config.json must give "
            "the target's vocab_size"
        )
    return rows, _matrix(path, shapes, "layers.0.linear")[0]


def _matrix(path: Path, shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, int]:
    shape = shapes.get(f"{MODULE}.{name}.weight", ())
    if len(shape) != 2:
        raise ConfigError(f"{path}: a ReDrafter needs a matrix {name}, there is {shape or 'none'}")
    return shape[0], shape[1]


def _with_beams(net: RecurrentDrafter, options: ReDrafter) -> RecurrentDrafter:
    return replace(
        net,
        num_beams=options.num_beams,
        draft_len_per_beam=options.draft_len_per_beam,
        greedy_search=options.greedy_search,
    )


def _compare_config(path: Path, net: RecurrentDrafter, hidden: int, vocab: int) -> None:
    """Raise ConfigError if config.json is there and contradicts the tensors."""
    file = path / "config.json"
    said = read_json(file) if file.is_file() else {}
    told: dict[str, int] = {key: getattr(net, fact) for key, fact in _TOLD.items()}
    told |= {"hidden_size": hidden, "vocab_size": vocab}
    differ = {key: value for key, value in told.items() if said.get(key, value) != value}
    if differ:
        wrong = (f"{key} is {said[key]}, the tensors have {v}" for key, v in differ.items())
        raise ConfigError(
            f"{file} does not match the weights: {'; '.join(wrong)}",
            hint="config.json belongs to another drafter, or the weights do",
        )


def _check_recurrence(path: Path) -> None:
    """Raise ConfigError if the drafter was trained without the silu around its recurrence.

    `specpipe train redrafter` names the recurrence in config.json. Before it did, it trained a
    linear one; those drafters are recognized by their calibration. Apple's name none and have silu.
    """
    file = path / "config.json"
    unnamed = "linear" if (path / CALIBRATION).is_file() else "silu"
    named = read_json(file).get("recurrence", unnamed) if file.is_file() else "silu"
    if named != "silu":
        raise ConfigError(
            f"{file}: recurrence is {named!r}: only silu is computed, so few of the drafter's "
            "tokens would be accepted",
            hint="train it again with `specpipe train redrafter`",
        )

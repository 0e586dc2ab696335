"""EAGLE-3 drafters (2503.01840) on disk: every tensor is compared with config.json and the target.

The drafter is one Llama layer. `fc` makes a hidden state of several ones of the target. The layer
reads it, normed, behind the normed embedding of the next token. `d2t` has, for every token of the
drafter's own vocabulary, its distance to the target's; `t2d` marks those tokens of the target. A
drafter without `embed_tokens` or `lm_head` uses the target's.

TensorRT-LLM's LLM API and vLLM read the folder as it is. For the CPU engine, conversion writes the
tensors into the target's checkpoint, in the module `eagle3`.

Not here: config.json, see `eagle3_format.py`.
"""

from collections.abc import Iterator, Mapping, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specpipe.checkpoint.drafter_method import drafter_method, refuse_other_drafters
from specpipe.checkpoint.eagle3_format import Eagle3Config, read_eagle3_config, usual_layers
from specpipe.checkpoint.eagle3_tensors import OPTIONAL, planned_eagle3
from specpipe.checkpoint.eagle3_vocabulary import DraftVocabulary, read_vocabulary_maps
from specpipe.checkpoint.families import HfConfig, TensorPlan
from specpipe.checkpoint.safetensors_file import SafetensorsFile
from specpipe.checkpoint.source import Opening, TensorReader, read_tensors
from specpipe.checkpoint.weight_files import weight_files
from specpipe.core.contracts import Role
from specpipe.core.drafters import Eagle3Drafter
from specpipe.core.errors import ConfigError, Rejection, first_few
from specpipe.core.model import Dtype, ModelConfig

if TYPE_CHECKING:
    pass

_EXPECTED = "an EAGLE-3 checkpoint: config.json with model.safetensors or pytorch_model.bin"
_OTHER = "use an EAGLE-3 checkpoint that was trained for this target"
_AGAIN = "fetch the checkpoint again; if it was trained, correct its config.json"
_IGNORED = ("verifier_", "rotary_emb.inv_freq")  # parts of names that no reader needs


@dataclass(frozen=True)
class Eagle3Source:
    """A drafter on disk whose weights were not read; see `DrafterSource`."""

    path: Path
    weights: tuple[Path, ...]
    shapes: Mapping[str, tuple[int, ...]]
    settings: Eagle3Config
    vocabulary: DraftVocabulary

    accuracy = None

    @property
    def summary(self) -> str:
        """Return the size in words."""
        net = self.settings.net
        return f"a drafter of 1 layer of hidden size {net.hidden_size}"

    @property
    def prefix(self) -> str:
        """How the names of the layer's tensors begin."""
        return "midlayer." if any(n.startswith("midlayer.") for n in self.shapes) else "layers.0."

    def files(self) -> list[Path]:
        """Return the files with the tensors, and their config.json."""
        return [*self.weights, self.path / "config.json"]

    def options(self) -> dict[str, str]:
        """Return nothing: the files decide all that is written."""
        return {}

    def facts(self, model: ModelConfig) -> Eagle3Drafter:
        """Return the drafter as its engine needs it."""
        known = self.settings
        return Eagle3Drafter(
            replace(known.net, dtype=model.dtype),
            self.draft_vocab_size,
            known.layer_ids or usual_layers(model.num_hidden_layers),
            bool(known.norm_before_residual),
            known.norm_output,
        )

    @property
    def draft_vocab_size(self) -> int:
        """Count the tokens that it drafts, as the tensors tell."""
        rows = self.shapes.get("d2t") or self.shapes.get("lm_head.weight")
        return rows[0] if rows else self.settings.net.vocab_size

    def joined(self, model: ModelConfig) -> ModelConfig:
        """Return the facts of a target and its drafter in one checkpoint."""
        return replace(model, eagle3=self.facts(model))

    def check(self, role: Role, model: ModelConfig) -> list[Rejection]:
        """Return every reason why the CPU engine cannot draft with it for a target."""
        return [*self.misfits(model), *self._not_computed()]

    def misfits(self, model: ModelConfig) -> Iterator[Rejection]:
        """Yield every reason why it cannot draft for a target, whatever runs it."""
        yield from self.defects()
        yield from self._check_layers(model)
        size, net = model.vocab_size, self.settings.net
        if net.vocab_size != size:
            yield Rejection(
                f"{self.path}: the drafter has a vocabulary of {net.vocab_size}, the target has "
                f"{size}",
                _OTHER,
            )
        if "embed_tokens.weight" not in self.shapes and net.hidden_size != model.hidden_size:
            yield Rejection(
                f"{self.path}: the drafter has no embed_tokens, and its hidden size of "
                f"{net.hidden_size} is not the target's, {model.hidden_size}",
                _OTHER,
            )

    def _check_layers(self, model: ModelConfig) -> Iterator[Rejection]:
        ids, count = self.facts(model).layer_ids, model.num_hidden_layers
        if ids[-1] >= count:
            yield Rejection(
                f"{self.path}: the drafter reads the input of layer {ids[-1]}, the target's layers "
                f"are 0 to {count - 1}",
                _OTHER,
            )
        read, size = self.shapes.get("fc.weight", (0, 0))[-1], model.hidden_size
        if read and read != len(ids) * size:
            yield Rejection(
                f"{self.path}: fc.weight reads {read} values, which are not {len(ids)} hidden "
                f"states of the target, each of {size}",
                _OTHER,
            )

    def defects(self) -> Iterator[Rejection]:
        """Yield what is wrong with the folder by itself: tensors and maps of vocabularies."""
        wanted = {n: s for p in self._plans(None) for n, s in self._sources_of(p)}
        missing = sorted(wanted.keys() - self.shapes.keys())
        extra = sorted(n for n in self.shapes.keys() - wanted.keys() if not _is_ignored(n))
        if missing:
            yield Rejection(f"{self.path}: the drafter lacks {first_few(missing)}", _AGAIN)
        if extra:
            yield Rejection(
                f"{self.path}: {first_few(extra)}: an EAGLE-3 drafter of one Llama layer has no "
                "such part",
                _AGAIN,
            )
        for name in sorted(wanted.keys() & self.shapes.keys()):
            if self.shapes[name] != wanted[name]:
                yield Rejection(
                    f"{self.path}: {name} has shape {list(self.shapes[name])}, by config.json it "
                    f"must have {list(wanted[name])}",
                    _AGAIN,
                )
        yield from self._check_vocabulary()

    def _check_vocabulary(self) -> Iterator[Rejection]:
        size, given = self.settings.net.vocab_size, self.settings.draft_vocab_size
        if given is not None and given != self.draft_vocab_size:
            yield Rejection(
                f"{self.path}: draft_vocab_size is {given}, the tensors have "
                f"{self.draft_vocab_size} draft tokens",
                _AGAIN,
            )
        if "d2t" not in self.shapes and self.draft_vocab_size != size:
            yield Rejection(
                f"{self.path}: the drafter has {self.draft_vocab_size} of {size} tokens, and no "
                "d2t tells which",
                _AGAIN,
            )
        if "lm_head.weight" not in self.shapes and self.draft_vocab_size != size:
            yield Rejection(
                f"{self.path}: the drafter has no lm_head, and the target's has {size} tokens, not "
                f"{self.draft_vocab_size}",
                _AGAIN,
            )
        for reason in self.vocabulary.defects(size):
            yield Rejection(f"{self.path}: {reason}", _AGAIN)

    def _not_computed(self) -> Iterator[Rejection]:
        known = self.settings
        if known.norm_before_residual is None:
            yield Rejection(
                f"{self.path / 'config.json'} has no norm_before_residual: vLLM then takes true, "
                "the speculators library false",
                "add the value that it was trained with",
            )
        for name in known.unknown:
            yield Rejection(
                f"{self.path / 'config.json'}: {name} is true, which the CPU engine does not "
                "compute",
                "use backend: llmapi, or a drafter without it",
            )

    def tensors(self, model: ModelConfig) -> list[TensorPlan]:
        """List the drafter's tensors, in the order in which they are written."""
        assert model.eagle3 is not None
        return self._plans(model.hidden_size)

    def _plans(self, hidden_size: int | None) -> list[TensorPlan]:
        """List the tensors; of an unknown target, `fc` has the columns that it has."""
        columns = self.shapes.get("fc.weight", (0, 0))[-1]
        if hidden_size and self.settings.layer_ids:
            columns = hidden_size * len(self.settings.layer_ids)
        there = [name for name in OPTIONAL if name in self.shapes]
        return planned_eagle3(self.settings.net, columns, self.draft_vocab_size, there, self.prefix)

    def _sources_of(self, plan: TensorPlan) -> Iterator[tuple[str, tuple[int, ...]]]:
        return zip(plan.sources, plan.source_shapes, strict=True)

    def shared(self, plans: list[TensorPlan]) -> list[TensorPlan]:
        """List nothing: the engine finds what it shares among the target's tensors."""
        return []

    def config(self, hf: HfConfig, written: Mapping[str, Any]) -> dict[str, Any]:
        """Return no further keys: the facts of the drafter are among the model's."""
        return {}

    def read(self, opening: Opening = SafetensorsFile) -> AbstractContextManager[TensorReader]:
        """Open the drafter's files, whose own names are the sources of `tensors`."""
        return read_tensors(self.weights, opening)


def _is_ignored(name: str) -> bool:
    return name in OPTIONAL or any(part in name for part in _IGNORED)


def open_eagle3(path: Path, dtype: Dtype = "float32") -> Eagle3Source:
    """Find an EAGLE-3 drafter in a folder; reads shapes, and the maps between vocabularies.

    Raises Unsupported for a drafter of another method, ConfigError for a folder without a drafter.
    """
    if not path.is_dir():
        raise ConfigError(f"{path}: not a folder", hint=f"expected {_EXPECTED}")
    weights = weight_files(path, expected=_EXPECTED)
    with read_tensors(weights) as reader:
        names: Set[str] = reader.names()
        refuse_other_drafters(path, names, "eagle3", "an EAGLE-3 drafter")
        if drafter_method(path, names) is None:
            raise ConfigError(f"{path}: no EAGLE-3 drafter", hint=f"expected {_EXPECTED}")
        shapes = {name: reader.shape(name) for name in names}
        vocabulary = read_vocabulary_maps(reader)
    return Eagle3Source(path, weights, shapes, read_eagle3_config(path, dtype), vocabulary)

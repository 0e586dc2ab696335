"""`specpipe convert`: converts a Hugging Face checkpoint to a TensorRT-LLM checkpoint."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from specpipe.checkpoint.drafter import DrafterSource
from specpipe.checkpoint.drafter_method import refuse_other_drafters
from specpipe.checkpoint.families import Family, TensorPlan, find_family, read_facts
from specpipe.checkpoint.medusa import is_inner_head
from specpipe.checkpoint.quantize import quantization_inputs, quantize, stored_plans
from specpipe.checkpoint.quantized.foreign import find_foreign, is_left_over
from specpipe.checkpoint.quantized.formats import PLAIN, Quantizing, metadata
from specpipe.checkpoint.reading import begin_reading, digest_content
from specpipe.checkpoint.source import Source, TensorReader, read_tensors, text_tensors, with_prefix
from specpipe.checkpoint.tied import head_name, settle_head
from specpipe.checkpoint.tokenizer import read_tokenizer
from specpipe.checkpoint.transfer import Progress, require_fit, write_tensors
from specpipe.core.artifacts import write_arithmetic
from specpipe.core.digests import Stamp, stamp
from specpipe.core.divisibility import ONE_RANK, Parallel, require_divisible
from specpipe.core.errors import ConfigError, Rejection, first_few
from specpipe.core.model import Dtype, ModelConfig

FORMAT = "8"  # raise it when the same source must give other bytes


def read_model(source: Source, dtype: Dtype, drafter: DrafterSource | None = None) -> ModelConfig:
    """Return the facts of a checkpoint without reading a tensor.

    Raises Unsupported for an unknown architecture or option, ConfigError for a bad config.json.
    """
    model = read_facts(source.hf_config, dtype, source.config_file)
    return model if drafter is None else drafter.joined(model)


def survey(source: Source, dtype: Dtype) -> ModelConfig:
    """Return the facts of a checkpoint whose files were compared with its config.json.

    Reads the headers of files, and a few small tensors. Raises what `read_model` raises, and
    ConfigError or Unsupported for tensors that `Conversion.write` would refuse by name, shape,
    type or layout.
    """
    with read_tensors(source.weights) as opened:
        refuse_other_drafters(source.path, opened.names(), "", "a model")
        family, model = find_family(source.hf_config), read_model(source, dtype)
        reader = _as_family(opened, family)
        model = settle_head(reader, family, source.hf_config, model, whole=False)
        _require_whole(reader, family, model, source)
    return model


def check_drafter_config(
    source: Source, model: ModelConfig, drafter: DrafterSource
) -> Iterator[Rejection]:
    """Yield why config.json of the joined `model` could not be written."""
    written = config_json(find_family(source.hf_config), model, ONE_RANK)
    try:
        drafter.config(source.hf_config, written)
    except ConfigError as error:
        yield Rejection(f"{source.config_file}: {error.message}", error.hint or "correct the file")


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote, and from what."""

    model: ModelConfig
    digests: Mapping[Path, str]  # of every file that was read, as `digest_content` has them
    remarks: tuple[str, ...] = ()  # what is likely wrong with the source


@dataclass(frozen=True)
class Conversion:
    """One model to convert: what it is read from, and how it is written."""

    source: Source
    dtype: Dtype
    drafter: DrafterSource | None = None  # heads or a drafter, written into the same files
    quantizing: Quantizing = PLAIN
    parallel: Parallel = ONE_RANK

    def inputs(self, digest: Callable[[Path], str] = digest_content) -> dict[str, str]:
        """Name everything that decides the bytes of the checkpoint, files by `digest`."""
        inputs = {f"source {file.name}": digest(file) for file in self.source.files()}
        if self.drafter is not None:
            inputs |= {f"heads {file.name}": digest(file) for file in self.drafter.files()}
        return inputs | self.options()

    def options(self) -> dict[str, str]:
        """Name what decides the bytes of the checkpoint, apart from the contents of files."""
        options = self.drafter.options() if self.drafter else {}
        options |= {name: str(value) for name, value in asdict(self.parallel).items()}
        options |= quantization_inputs(self.source, self.quantizing)
        return {**options, "dtype": self.dtype, "format": FORMAT}

    def state(self) -> dict[Path, Stamp]:
        """Return the stamps of all files that are read, those of `source` as it was found."""
        own = self.drafter.files() if self.drafter else []
        return {**{file: stamp(file) for file in own}, **self.source.stamps}

    def write(
        self, out: Path, progress: Progress, state: Mapping[Path, Stamp] | None = None
    ) -> Converted:
        """Write the folder `out`: config.json and arithmetic.json, a rankN.safetensors for every
        rank, tokenizer/, and digests.json with the sha256 of every tensor's bytes.

        The folder is empty, or holds the unfinished work of a killed conversion with the same
        options and the same `state` of the files (the present one if it is not given), which is
        then completed. Raises Unsupported if the model does not divide by the ranks, ConfigError
        naming every tensor that is missing, unexpected or of the wrong shape, StageFailed if the
        disk is too small, and what `read_tokenizer` raises, all before anything is written;
        ConfigError for values that are not numbers, when they are read; and StageFailed if a file
        that was read is not what it was in that state.
        """
        source, drafter = self.source, self.drafter
        family = find_family(source.hf_config)
        model = read_model(source, self.dtype, drafter)
        parallel = effective(self.parallel, family)
        require_divisible(model, parallel)
        tokenizer = read_tokenizer(source, model)
        with begin_reading(state or self.state(), out) as reading:
            with contextlib.ExitStack() as stack:
                reader = stack.enter_context(read_tensors(source.weights, reading.open))
                reader = _as_family(reader, family)
                model = settle_head(reader, family, source.hf_config, model, whole=True)
                plans = _require_whole(reader, family, model, source)
                plans += drafter.shared(plans) if drafter else []
                plans, quantizing = quantize(source, plans, model, self.quantizing, reader, out)
                config = config_json(family, model, parallel)
                config["quantization"] = metadata(quantizing, model)
                config |= drafter.config(source.hf_config, config) if drafter else {}
                work = [(reader, plan) for plan in plans]
                if drafter is not None:
                    extra = stack.enter_context(drafter.read(reading.open))
                    work += [(extra, plan) for plan in drafter.tensors(model)]
                write_tensors(work, model, parallel, out, progress)
            text = json.dumps(config, indent=2, sort_keys=True) + "\n"
            (out / "config.json").write_text(text, encoding="utf-8")
            write_arithmetic(model, out)
            facts = tokenizer.write(out / "tokenizer")
            remarks = (*facts.remarks(), *files_remarks(source))
            return Converted(model, reading.digests(), remarks)


def files_remarks(source: Source) -> list[str]:
    """Return which of several files with weights are read, if a folder has such."""
    if not source.passed_over:
        return []
    taken = first_few([file.name for file in source.weights])
    return [f"the weights are read from {taken}, not from {first_few(source.passed_over)}"]


def effective(parallel: Parallel, family: Family) -> Parallel:
    """Return how a family is spread: some of upstream's classes insist on a cut embedding."""
    insists = family.cuts_embedding and parallel.tp_size > 1
    return replace(parallel, use_parallel_embedding=parallel.use_parallel_embedding or insists)


def _as_family(reader: TensorReader, family: Family) -> TensorReader:
    """Return the tensors under the names that a family plans."""
    return with_prefix(text_tensors(reader, family.outer_names), family.base_prefix)


def _require_whole(
    reader: TensorReader, family: Family, model: ModelConfig, source: Source
) -> list[TensorPlan]:
    """Return the plans of a model whose tensors are all there, with the right shapes and types."""
    plans = family.tensors(model)
    stored = stored_plans(source, plans, model, reader)
    _account(reader, stored, family, model, source)
    for plan in stored:
        require_fit(reader, plan)
    return plans


def _account(
    reader: TensorReader,
    plans: list[TensorPlan],
    family: Family,
    model: ModelConfig,
    source: Source,
) -> None:
    wanted = {name for plan in plans for name in plan.sources}
    there = reader.names()
    missing = sorted(wanted - there)
    unexpected = sorted(
        n for n in there - wanted if not family.ignored(n, model) and not is_inner_head(n)
    )
    if model.tie_word_embeddings:
        unexpected = [name for name in unexpected if name != head_name(family, model)]
    if unexpected and find_foreign(source) is not None:
        unexpected = [name for name in unexpected if not is_left_over(name, reader)]
    if missing or unexpected:
        parts = [f"missing: {first_few(missing)}"] if missing else []
        parts += [f"unexpected: {first_few(unexpected)}"] if unexpected else []
        raise ConfigError(
            f"{source.path}: the tensors do not match config.json; {'; '.join(parts)}",
            hint="the file is cut short, or config.json belongs to another model",
        )


def config_json(family: Family, model: ModelConfig, parallel: Parallel) -> dict[str, Any]:
    """Return config.json with upstream's `PretrainedConfig` keys.

    Its `mapping` wants moe_tp_size * moe_ep_size to be tp_size, with experts or without.
    """
    mapping = {
        "world_size": parallel.world_size,
        "gpus_per_node": 8,
        "cp_size": 1,
        "tp_size": parallel.tp_size,
        "pp_size": parallel.pp_size,
        "moe_tp_size": parallel.moe_tp_size,
        "moe_ep_size": parallel.moe_ep_size,
    }
    return {
        **model.to_json(),
        "logits_dtype": "float32",
        "mapping": mapping,
        "use_parallel_embedding": parallel.use_parallel_embedding,
        "embedding_sharding_dim": parallel.embedding_sharding_dim,
        **family.extra_config(model),
    }

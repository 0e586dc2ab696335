"""Run TensorRT-LLM's own `trtllm-build` on checkpoints, and compute what its network computes.

    python -m upstream_check.runner TREE RELEASE

Reads jobs as lines of JSON; every rank of a job is a process that is forked off this one, which has
imported the tree once. The prompt of one request is computed, with no KV cache before it.
"""

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from upstream_check import attention, enums, network, plugins, quantized, world

Values = dict[str, Any]
SPARED = ("spec_decoding_generation_lengths", "spec_decoding_position_offsets",
          "spec_decoding_packed_mask")  # fmt: skip  # of requests that decode: there are none


@dataclass(frozen=True)
class Job:
    """A build: the arguments of trtllm-build, and where its results go."""

    argv: list[str]
    ranks: int
    port: int  # where ranks meet
    tokens: list[int]  # the prompt
    out: str  # .RANK.npz and .RANK.json are added
    folder: str  # paths in `argv` are relative to it
    seconds: float


class Feed(dict[str, Any]):
    """Values of a network's inputs; those that are not named are zero."""

    def __missing__(self, name: str) -> Any:
        return lambda dtype, shape: torch.zeros([1 if size == -1 else size for size in shape])


def prompt_feed(tokens: Sequence[int]) -> Feed:
    """Return the inputs for one prompt. ReDrafter's temperature is low: it draws the likeliest."""
    count = len(tokens)

    def empty(dtype: object, shape: Sequence[int]) -> torch.Tensor:
        return torch.zeros([0 if len(shape) == 3 else 1, *shape[1:]])

    def none(dtype: object, shape: Sequence[int]) -> torch.Tensor:
        return torch.zeros([0, *shape[1:]])

    lengths = dict.fromkeys(
        ("last_token_ids", "sequence_length", "context_lengths", "host_context_lengths",
         "position_ids_base"),
        torch.tensor([count]),
    )  # fmt: skip
    return Feed(
        **lengths,
        input_ids=torch.tensor(tokens),
        position_ids=torch.arange(count),
        host_request_types=torch.tensor([0]),
        host_past_key_value_lengths=torch.tensor([0]),
        host_max_attention_window_sizes=lambda dtype, shape: torch.full(shape, 4096),
        hidden_states_input=lambda dtype, shape: torch.zeros(count, shape[1]),
        draft_tokens=empty,
        rand_data_validation=empty,
        draft_indices=none,
        draft_probs=none,
        redrafter_inverted_temperature=torch.tensor([50.0]),
        rand_data_sample=torch.tensor([0.5]),
        chunked_context_next_tokens=torch.tensor([-1]),
        input_gen_tokens=torch.zeros(0),
    )


def prepare(tree: Path, release: str) -> None:
    """Import the tree once, with all stand-ins in place."""
    world.install(tree, release)
    torch.set_num_threads(1)
    for name in (
        "models",
        "commands.build",
    ):  # in this order: modules of the tree import each other
        importlib.import_module(f"tensorrt_llm.{name}")
    from tensorrt_llm import builder
    from tensorrt_llm.commands import build
    from tensorrt_llm.logger import logger

    world.patch_constants()
    attention.install()
    quantized.install()
    logger.set_level = lambda *_: None
    torch.cuda.set_device = lambda *_: None
    torch.cuda.device_count = lambda: 8
    if hasattr(build, "infer_cluster_config"):
        build.infer_cluster_config = lambda: {}
    builder.optimize = lambda network: None
    builder.Builder.save_timing_cache = staticmethod(lambda *_, **__: True)


@dataclass
class Rank:
    """One rank of a job: it builds, and keeps what it saw."""

    number: int
    job: Job
    report: Values
    values: Values

    def build(self) -> None:
        """Run `trtllm-build` of the tree, with its own parser, classes and network."""
        from tensorrt_llm.commands import build

        self._keep_messages()
        self._watch_loading()
        self._compute_instead_of_building()
        self._feed()
        if self.job.ranks > 1:
            self._be_one_of_many(build)
        sys.argv = ["trtllm-build", *self.job.argv]
        self.report["stage"] = "arguments"
        build.main()
        self.report.update(ok=True, stage="done")

    def _keep_messages(self) -> None:
        from tensorrt_llm.logger import logger

        for level in ("warning", "error"):

            def keep(*words: object, level: str = level) -> None:
                self.report["messages"].append(f"{level}: " + " ".join(map(str, words)))

            setattr(logger, level, keep)

    def _watch_loading(self) -> None:
        from tensorrt_llm.models import modeling_utils

        original, report = modeling_utils.PretrainedModel.load, self.report

        def load(model: Any, weights: Values, *rest: Any, **named: Any) -> None:
            report["stage"] = "load"
            wanted = {n: p for n, p in model.named_parameters() if not p.is_inited()}
            there = {n: p for n, p in model.named_parameters() if n in weights}
            report["parameters"] = len(wanted)
            report["missing"] = sorted(wanted.keys() - weights.keys())
            report["unexpected"] = sorted(weights.keys() - wanted.keys())
            report["misshapen"] = [
                f"{name}: {tuple(weights[name].shape)} for {tuple(p.shape)}"
                for name, p in there.items()
                if tuple(weights[name].shape) != tuple(p.shape)
            ]
            report["of another type"] = [
                f"{name}: {weights[name].dtype} for {p.dtype.name}"
                for name, p in there.items()
                if enums.FROM_TORCH.get(weights[name].dtype) != p.dtype
            ]
            original(model, weights, *rest, **named)
            report["stage"] = "network"

        modeling_utils.PretrainedModel.load = load

    def _compute_instead_of_building(self) -> None:
        from tensorrt_llm import builder

        def build_engine(maker: Any, made: Any, config: Any, managed: Any = None) -> bytes:
            self.report["stage"] = "profiles"
            maker._add_optimization_profile(made, config)
            self.report["stage"] = "compute"
            outputs = {tensor.name: tensor.data for tensor in made.trt_network.marked}
            for name, value in {**outputs, **plugins.CAPTURED}.items():
                self.values[name] = value.float().numpy()
            return b"engine"

        builder.Builder.build_engine = build_engine

    def _feed(self) -> None:
        feed, argv = prompt_feed(self.job.tokens), self.job.argv
        config = Path(argv[argv.index("--checkpoint_dir") + 1], "config.json")
        if json.loads(config.read_text())["architecture"].startswith("ReDrafter"):
            for name in SPARED:
                feed[name] = lambda dtype, shape: torch.zeros([0, *(abs(n) for n in shape[1:])])
        network.INetworkDefinition.feed = feed

    def _be_one_of_many(self, build: Any) -> None:
        number, ranks = self.number, self.job.ranks

        class Communicator:
            def Split_type(self, **_: object) -> "Communicator":  # noqa: N802
                return self

            def Get_rank(self) -> int:  # noqa: N802
                return number

            def Abort(self) -> None:  # noqa: N802
                pass

        build.mpi_world_size, build.mpi_rank = lambda: ranks, lambda: number
        build.mpi_comm, build.mpi_barrier = Communicator, lambda: None

        def again(*_: object, **__: object) -> None:
            error = sys.exc_info()[1]
            assert error is not None
            raise error

        build.traceback = type("Traceback", (), {"print_exc": staticmethod(again)})


def run(number: int, job: Job) -> None:
    """Build one rank in this process, and write what came of it."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(job.port))
    rank = Rank(number, job, {"ok": False, "stage": "start", "messages": []}, {})
    try:
        plugins.install(number, job.ranks)
        rank.build()
    except SystemExit as error:
        rank.report["error"] = f"the parser stopped with {error.code}"
    except BaseException as error:
        rank.report["error"] = f"{type(error).__name__}: {error}"
        rank.report["trace"] = traceback.format_exc()
    np.savez(f"{job.out}.{number}.npz", **rank.values)
    Path(f"{job.out}.{number}.json").write_text(json.dumps(rank.report, indent=1))


def fork(job: Job) -> list[int]:
    """Start all ranks of a job; return their process ids."""
    children = []
    for number in range(job.ranks):
        child = os.fork()
        if child == 0:
            os.chdir(job.folder)
            log = os.open(f"{job.out}.{number}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            run(number, job)
            os._exit(0)
        children.append(child)
    return children


def await_all(children: list[int], seconds: float) -> bool:
    """Wait for child processes; end those that take longer, and tell whether there were any."""
    end = time.monotonic() + seconds
    while children and time.monotonic() < end:
        children = [child for child in children if os.waitpid(child, os.WNOHANG) == (0, 0)]
        time.sleep(0.02)
    for child in children:
        os.kill(child, 9)
        os.waitpid(child, 0)
    return bool(children)


def main() -> None:
    """Answer every job with `done` or `timeout`."""
    prepare(Path(sys.argv[1]), sys.argv[2])
    print("ready", flush=True)
    for line in sys.stdin:
        job = Job(**json.loads(line))
        print("timeout" if await_all(fork(job), job.seconds) else "done", flush=True)


if __name__ == "__main__":
    main()

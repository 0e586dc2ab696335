"""Reads progress and failures from the log of `trtllm-build`; only a few lines are recognized."""

import re
import signal
from collections.abc import Sequence

# log line -> progress of the build; the last line that matches counts
_PHASES = (
    (r"Serializing engine to .*rank(\d+)\.engine", "writing rank {0}"),
    (r"Engine serialized", "rank written"),
    (r"Engine generation completed in ([\d.]+) seconds", "engine generated in {0} s"),
    (r"Total time of building all engines", "all ranks built"),
    (r"Loading (?:the )?(?:timing cache|serialized timing cache)", "reading the timing cache"),
)

# pattern in the log -> hint; the first pattern that matches counts
_CAUSES = (
    (
        r"unrecognized arguments|invalid choice|the following arguments are required",
        "this trtllm-build does not accept the planned flags, so it is another release: build in "
        "the planned container (--in-container), or set engine.tensorrt_llm to the installed one",
    ),
    (
        r"No space left on device|Disk quota exceeded",
        "free some disk space and run the same command again",
    ),
    (
        r"out of memory|OutOfMemory|Insufficient memory|std::bad_alloc|Cannot allocate memory",
        "lower engine.max_batch_size or engine.max_seq_len, quantize, raise engine.tp_size, or "
        "stop other programs that use the GPU",
    ),
    (
        r"max_workers must be greater than 0|no CUDA-capable device|No CUDA GPUs are available"
        r"|Found no NVIDIA driver|could not select device driver",
        "no GPU is visible there: check nvidia-smi, CUDA_VISIBLE_DEVICES, and that the container "
        "was given the GPU",
    ),
    (
        r"driver version is insufficient|forward compatibility was attempted",
        "the driver is too old for the CUDA of this release: update it, or choose an older "
        "engine.tensorrt_llm",
    ),
    (
        r"Required but not provided tensors|not the same shape as the original",
        "trtllm-build and the checkpoint disagree: this is a defect of specpipe; please report it "
        "with the log",
    ),
    (
        r"Version tag does not match|different version of TensorRT",
        "engines/.timing holds a cache of another TensorRT release: delete it",
    ),
    (r"Cannot connect to the Docker daemon", "start docker, or run on a machine that has it"),
    (
        r"pull access denied|manifest unknown|unauthorized: |failed to resolve reference",
        "log in to nvcr.io (docker login nvcr.io) and pull the image once by hand",
    ),
)


def phase(lines: Sequence[str]) -> str | None:
    """Return the progress of the build from its latest lines; None if no line matches."""
    for line in reversed(lines):
        for pattern, words in _PHASES:
            match = re.search(pattern, line)
            if match:
                return words.format(*match.groups())
    return None


def explain_exit(code: int) -> str:
    """Describe the exit code of a program in words."""
    if code == -signal.SIGKILL or code == 128 + signal.SIGKILL:
        return "was killed, perhaps by the kernel because host memory ran out"
    if code < 0:
        return f"was terminated by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def advise(code: int, text: str) -> str | None:
    """Return a hint for a failure from its exit code and log; None for an unknown failure."""
    for pattern, hint in _CAUSES:
        if re.search(pattern, text, re.IGNORECASE):
            return hint
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return "add memory or swap, or lower engine.tp_size (fewer parallel workers)"
    return None

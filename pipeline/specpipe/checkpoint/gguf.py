"""GGUF files, which transformers dequantises as a whole: they need memory for the whole model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specpipe.core.errors import ConfigError, Unsupported

if TYPE_CHECKING:
    import torch


def gguf_config(path: Path) -> dict[str, Any]:
    """Return the config.json that a GGUF file stands for.

    Raises Unsupported without the packages that read it, ConfigError if it cannot be used.
    """
    from transformers import AutoConfig

    with _errors(path):
        config: dict[str, Any] = AutoConfig.from_pretrained(
            path.parent, gguf_file=path.name, local_files_only=True
        ).to_dict()
    return config


def gguf_tensors(path: Path) -> "dict[str, torch.Tensor]":
    """Return all tensors of a GGUF file in float32, by their Hugging Face names.

    Raises what `gguf_config` raises.
    """
    from transformers import AutoModelForCausalLM

    with _errors(path):
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, local_files_only=True, **_options()
        )
    state: dict[str, torch.Tensor] = model.state_dict()
    return state


def _options() -> dict[str, Any]:
    import torch

    try:
        from transformers import GgufConfig  # transformers 5 may keep weights quantised
    except ImportError:
        return {"torch_dtype": torch.float32}
    return {"dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise Unsupported(
            f"{path}: reading GGUF needs gguf and accelerate: {error}",
            hint="in a clone of specpipe: pip install -e '.[gguf]'",
        ) from error
    except (ValueError, OSError, KeyError) as error:
        raise ConfigError(f"{path}: not a usable GGUF file: {error}") from error

"""Loads a GGUF file as a float32 model of transformers, to judge what is made of the file.

transformers' own reader makes the weights. The config is that of `config_of`: transformers takes
some facts from the defaults of its classes though the file states them, such as the scaling of
rotary positions and the sizes of experts.
"""

import contextlib
import io
from pathlib import Path
from typing import Any

from specpipe.checkpoint.gguf.config import config_of
from specpipe.checkpoint.gguf.header import read_header
from specpipe.core.errors import Unsupported


def load_judge(path: Path) -> Any:
    """Return the transformers model of a file, with float32 weights.

    Raises what `config_of` raises, and Unsupported without the packages that transformers needs.
    """
    import torch
    import transformers

    facts = config_of(read_header(path))
    major = int(transformers.__version__.split(".")[0])
    if major < 5 and facts["model_type"] == "qwen2_moe":
        raise Unsupported(
            f"{path}: transformers {transformers.__version__} reads no experts from GGUF",
            hint="pip install --upgrade transformers",
        )
    config = transformers.AutoConfig.for_model(**facts)
    kind = getattr(transformers, facts["architectures"][0])
    place = {"gguf_file": path.name, "config": config, "local_files_only": True}
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a bar that no setting turns off
            model = kind.from_pretrained(path.parent, **place, **_options())
    except ImportError as error:
        raise Unsupported(
            f"{path}: reading GGUF needs gguf and accelerate: {error}",
            hint="in a clone of specpipe: pip install -e '.[gguf]'",
        ) from error
    return model.to(torch.float32)


def _options() -> dict[str, Any]:
    import torch

    try:
        from transformers import GgufConfig  # transformers 5 may keep weights quantised
    except ImportError:
        return {"torch_dtype": torch.float32}
    return {"dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}

"""The model repository of Triton's `vllm` backend: `config.pbtxt` and `model.json`.

The backend passes `model.json` to vLLM's `AsyncEngineArgs`, whose names are those of the flags. It
declares the tensors of the model itself. `KIND_MODEL` leaves the GPUs to vLLM: with several ranks
the backend refuses `KIND_GPU` (model.py of triton-inference-server/vllm_backend).
"""

import json
from collections.abc import Mapping

from specpipe.engine.backend import BuildRequest
from specpipe.engine.vllm.arguments import speculative_config

MODEL = "vllm_model"
TRITON_BACKEND = "vllm"  # the name of a shared library or a Python model in Triton's container
_CONFIG = f"""\
backend: "{TRITON_BACKEND}"
model_transaction_policy {{ decoupled: true }}
instance_group [ {{ count: 1, kind: KIND_MODEL }} ]
"""


def repository_files(request: BuildRequest) -> Mapping[str, str]:
    """Return the files of the repository by their paths in it."""
    text = json.dumps(engine_arguments(request), indent=2) + "\n"
    return {f"{MODEL}/config.pbtxt": _CONFIG, f"{MODEL}/1/model.json": text}


def engine_arguments(request: BuildRequest) -> dict[str, object]:
    """Return the fields of `AsyncEngineArgs` for a run."""
    engine, speculation = request.engine, speculative_config(request)
    revision = request.revisions.get("target")
    cache = engine.kv_cache_quantization
    return {
        "model": request.sources["target"],
        **({"revision": revision, "tokenizer_revision": revision} if revision else {}),
        "dtype": engine.dtype,
        "max_model_len": engine.max_seq_len,
        "max_num_seqs": engine.max_batch_size,
        "tensor_parallel_size": engine.parallel.tp_size,
        "pipeline_parallel_size": engine.parallel.pp_size,
        **({"enable_expert_parallel": True} if engine.parallel.moe_ep_size > 1 else {}),
        **({} if cache == "none" else {"kv_cache_dtype": cache}),
        **({"enforce_eager": True} if engine.gpu is None else {}),
        **({"speculative_config": speculation} if speculation else {}),
    }

"""The committed configs for GPUs, and changes to them that are refused."""

from pathlib import Path
from typing import Any

import yaml

from specpipe.config.run_config import read_config
from specpipe.core.artifacts import Workspace
from specpipe.plan.make_plan import make_plan
from specpipe.plan.plan import Plan

CONFIGS = Path("model_configs")
DRAFT, MEDUSA = "llama70b_draft7b", "vicuna7b_medusa"
REDRAFTER = "vicuna7b_redrafter"
LOOKAHEAD, EAGLE, EAGLE3 = "llama8b_lookahead", "vicuna7b_eagle", "llama8b_eagle3_llmapi"
MIXTRAL_HEADS = {"target.model": "mistralai/Mixtral-8x7B-Instruct-v0.1", "engine.gpu": "H200"}
REFUSED: list[tuple[str, dict[str, Any]]] = [
    (DRAFT, {"engine.gpu": "H100"}),
    (DRAFT, {"engine.gpu": None, "engine.tp_size": None}),
    (DRAFT, {"engine.tp_size": 1}),
    (DRAFT, {"engine.tp_size": 2, "engine.max_batch_size": 64}),
    (DRAFT, {"engine.tp_size": 3}),
    (DRAFT, {"engine.pp_size": 3}),
    (DRAFT, {"engine.tp_size": 16}),
    (DRAFT, {"engine.max_seq_len": 9000}),
    (DRAFT, {"engine.dtype": "float32"}),
    (DRAFT, {"engine.quantization": "nvfp4"}),
    (DRAFT, {"engine.kv_cache_quantization": "int8"}),
    (DRAFT, {"engine.kv_cache_quantization": "fp8"}),
    (DRAFT, {"engine.gpu": "A100-80GB-SXM", "engine.quantization": "fp8"}),
    (DRAFT, {"engine.gpu": "B200", "engine.quantization": "int8"}),
    (DRAFT, {"engine.gpu": "B200", "engine.quantization": "int4_awq"}),
    (DRAFT, {"engine.gpu": "RTX-PRO-6000", "engine.tensorrt_llm": "0.18.2"}),
    (DRAFT, {"engine.tensorrt_llm": "1.3.0rc22"}),
    (DRAFT, {"engine.tensorrt_llm": "1.1.0"}),
    (DRAFT, {"engine.tensorrt_llm": "1.2"}),
    (DRAFT, {"speculation.draft.model": "meta-llama/Llama-3.1-8B-Instruct"}),
    (DRAFT, {"speculation.draft_length": "adaptive"}),
    (DRAFT, {"speculation.max_concurrency": 4}),
    (DRAFT, {"speculation.method": "hybrid"}),
    (DRAFT, {"engine.backend": "openvino"}),
    (MEDUSA, {"speculation.tree": [[0, 0, 0, 0, 0]], "speculation.num_draft_tokens": None}),
    (MEDUSA, {"speculation.tree": "dynamic"}),
    (MEDUSA, {"speculation.acceptance": "typical"}),
    (MEDUSA, {"speculation.heads": "FasterDecoding/medusa-vicuna-13b-v1.3"}),
    (MEDUSA, {"engine.quantization": "int8_sq"}),
    (MEDUSA, {"engine.pp_size": 2}),
    (MEDUSA, {"engine.backend": "llmapi"}),
    (MEDUSA, MIXTRAL_HEADS | {"engine.dtype": "bfloat16", "speculation.heads": "heads/mixtral"}),
    (REDRAFTER, {"engine.backend": "openvino", "engine.gpu": None, "engine.dtype": "float32",
                 "speculation.greedy_search": False,
                 "target.model": "TinyLlama/TinyLlama-1.1B-Chat-v1.0"}),
    (REDRAFTER, {"engine.backend": "llmapi"}),
    (REDRAFTER, {"engine.pp_size": 2}),
    (REDRAFTER, {"speculation.draft_vocab_size": 4096}),
    (REDRAFTER, {"engine.quantization": "int8_sq"}),
    (REDRAFTER, {"target.model": "mistralai/Mistral-7B-v0.1"}),
    (REDRAFTER, {"target.model": "Qwen/Qwen2-7B-Instruct", "engine.tensorrt_llm": "0.18.2"}),
    (LOOKAHEAD, {"target.model": "mistralai/Mistral-7B-v0.1", "engine.max_seq_len": 6144}),
    (LOOKAHEAD, {"engine.tensorrt_llm": "0.18.2"}),
    (LOOKAHEAD, {"speculation.window_size": 1, "speculation.ngram_size": 1,
                 "speculation.verification_set_size": 0}),
    (LOOKAHEAD, {"engine.backend": "llmapi"}),
    (EAGLE, {"engine.backend": "llmapi"}),
    (EAGLE, {"engine.tensorrt_llm": "1.3.0rc22"}),
    (EAGLE, {"engine.pp_size": 2}),
    (EAGLE, {"engine.max_batch_size": 1024}),
    (EAGLE, {"engine.kv_cache_quantization": "fp8", "engine.quantization": "fp8"}),
    (EAGLE, {"engine.quantization": "int8_sq"}),
    (EAGLE, {"speculation.tree": "dynamic"}),
    (EAGLE, {"speculation.drafter": "yuhuili/EAGLE-LLaMA3-Instruct-8B"}),
    (EAGLE, {"target.model": "Qwen/Qwen2-7B-Instruct"}),
    (EAGLE3, {"engine.backend": "tensorrt"}),
    (EAGLE3, {"speculation.tree": "dynamic", "speculation.draft_length": "adaptive"}),
    (EAGLE3, {"engine.quantization": "int4_awq"}),
    (EAGLE3, {"serving.instances": 2}),
    (EAGLE3, {"engine.kv_cache_quantization": "int8"}),
    (EAGLE3, {"engine.tensorrt_llm": "1.3.0rc22"}),
    (EAGLE3, {"engine.tensorrt_llm": "1.4.0rc4", "serving.front": "dynamo"}),
    (EAGLE3, {"engine.tensorrt_llm": "1.1.0", "serving.front": "trtllm_serve"}),
    (EAGLE3, {"serving.front": "trtllm_serve", "serving.max_queue_size": 3,
              "serving.decoupled": False}),
    (EAGLE3, {"serving.front": "trtllm_serve", "engine.backend": "tensorrt"}),
    (EAGLE3, {"speculation.use_rejection_sampling": True, "engine.tensorrt_llm": "1.2.1"}),
    (EAGLE3, {"engine.tensorrt_llm": "1.4.0rc4", "serving.front": "trtllm_serve",
              "engine.tp_size": 1, "engine.pp_size": 2}),
    (DRAFT, {"serving.front": "dynamo"}),
    ("deepseek-v3_mtp_llmapi", {"target.model": "meta-llama/Llama-3.3-70B-Instruct"}),
    ("qwen25-coder_ngram_llmapi", {"engine.backend": "tensorrt"}),
    ("qwen25-coder_ngram_llmapi", {"speculation.tree": "dynamic"}),
]  # fmt: skip


def plan_of(file: Path) -> Plan:
    """Return the plan of a config."""
    config = read_config(file)
    return make_plan(config, Workspace(Path(), config.name))


def changed(name: str, changes: dict[str, Any], folder: Path) -> Path:
    """Write a committed config with other values; None removes a key."""
    raw = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    for dotted, value in changes.items():
        *sections, key = dotted.split(".")
        section = raw
        for part in sections:
            section = section.setdefault(part, {})
        if value is None:
            section.pop(key, None)
        else:
            section[key] = value
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(raw))
    return file


def words(changes: dict[str, Any]) -> str:
    """Return changes in the words of the golden file."""
    return ", ".join(f"{key}: {'(none)' if v is None else v}" for key, v in changes.items())

"""The layouts of AutoAWQ, GPTQ and Model-Optimizer's FP8, written down as rules that pack them.

Each packer takes a tiny Hugging Face folder, writes one with the same model quantised, and returns
the float32 weights of every layer that the stored numbers stand for.
"""

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

GROUP = 64
LINEARS = r"(_proj|experts\.\d+\.w\d)\.weight$"
AWQ_PLACES = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of a word holds this one of its eight columns


def pack_words(levels: torch.Tensor, places: tuple[int, ...]) -> torch.Tensor:
    """Put eight columns of [a, 8b] into every int32 of [a, b], nibble i from place i."""
    words = torch.zeros(levels.shape[0], levels.shape[1] // 8, dtype=torch.int64)
    for nibble, place in enumerate(places):
        words |= levels[:, place::8].long() << (4 * nibble)
    return words.to(torch.int64).where(words < 2**31, words - 2**32).to(torch.int32)


def quantise(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return levels [k, n], zero points and float16 scales [k / GROUP, n] of weights [n, k]."""
    groups = weight.T.reshape(-1, GROUP, len(weight))
    low, high = groups.amin(dim=1), groups.amax(dim=1)
    scale = ((high - low) / 15).half()
    zero = (-low / scale.float()).round().clamp(1, 15)
    levels = (groups / scale.float()[:, None] + zero[:, None]).round().clamp(0, 15)
    return levels.reshape(weight.T.shape).int(), zero.int(), scale


def awq(name: str, weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    levels, zero, scale = quantise(weight)
    tensors = {
        f"{name}.qweight": pack_words(levels, AWQ_PLACES),
        f"{name}.qzeros": pack_words(zero, AWQ_PLACES),
        f"{name}.scales": scale,
    }
    return tensors, meaning(levels, zero, scale)


def gptq(name: str, weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    levels, zero, scale = quantise(weight)
    in_order = tuple(range(8))
    tensors = {
        f"{name}.qweight": pack_words(levels.T.contiguous(), in_order).T.contiguous(),
        f"{name}.qzeros": pack_words(zero - 1, in_order),
        f"{name}.scales": scale,
        f"{name}.g_idx": torch.arange(len(levels)).int() // GROUP,
        f"{name}.bias": torch.zeros(len(weight), dtype=torch.float16),
    }
    return tensors, meaning(levels, zero, scale)


def meaning(levels: torch.Tensor, zero: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    wide = [t.repeat_interleave(GROUP, dim=0) for t in (zero, scale.float())]
    return ((levels - wide[0]) * wide[1]).T.contiguous()


def expert_of(name: str) -> int:
    found = re.search(r"experts\.(\d+)\.", name)
    return int(found[1]) if found else 0


def fp8(name: str, weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    scale = weight.abs().max() / 448
    stored = (weight / scale).to(torch.float8_e4m3fn)
    tensors = {
        f"{name}.weight": stored,
        f"{name}.weight_scale": scale,
        f"{name}.input_scale": torch.tensor(0.01 * (1 + len(weight) + expert_of(name))),
    }
    if name.endswith(("k_proj", "v_proj")):
        tensors[f"{name}.{name[-6]}_scale"] = torch.tensor(2.5 if name[-6] == "v" else 0.5)
    return tensors, stored.float() * scale


FACTS = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm",
            "zero_point": True},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False},
}  # fmt: skip
PACKERS = {"awq": awq, "gptq": gptq, "modelopt_fp8": fp8}


def pack_model(
    source: Path, out: Path, method: str, which: str = LINEARS
) -> dict[str, torch.Tensor]:
    """Write `source` quantised by `method` into `out`; return what its weights now are.

    `which` is a pattern of the weights that are quantised.
    """
    shutil.copytree(source, out)
    tensors, meant = {}, {}
    plain = load_file(source / "model.safetensors")
    for name, tensor in plain.items():
        if re.search(which, name):
            module = name.removesuffix(".weight")
            packed, meant[name] = PACKERS[method](module, tensor.float())
            tensors |= {n: t for n, t in packed.items() if n == name or n not in plain}
        else:
            tensors[name] = meant[name] = tensor
    save_file(tensors, out / "model.safetensors")
    config = json.loads((out / "config.json").read_text())
    if method in FACTS:
        config["quantization_config"] = FACTS[method]
        (out / "config.json").write_text(json.dumps(config))
    else:
        facts = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
        text = json.dumps({"producer": {"name": "modelopt"}, "quantization": facts})
        (out / "hf_quant_config.json").write_text(text)
    return meant

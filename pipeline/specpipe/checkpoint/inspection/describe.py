"""Converts an inspection to text."""

from specpipe.checkpoint.inspection.records import (
    EngineLimits,
    File,
    InspectedModel,
    Inspection,
    Speculation,
)

_GIB = 2**30


def inspection_text(found: Inspection) -> str:
    """Return everything that was found, for people."""
    version = f", TensorRT-LLM {found.version}" if found.version else ""
    lines = [
        f"folder     {found.path}",
        f"kind       {found.kind}{version}",
        *_model(found.model),
        f"speculates {_speculation(found.speculation)}",
    ]
    if found.ranks is not None and found.ranks.count > 1:
        ranks = found.ranks
        experts = f", {ranks.moe_ep_size} for experts" if ranks.moe_ep_size > 1 else ""
        lines.append(f"ranks      {ranks.count}: tp {ranks.tp_size}, pp {ranks.pp_size}{experts}")
    if found.limits is not None:
        lines.append(f"limits     {_limits(found.limits)}")
    lines += [f"file       {_file(file)}" for file in found.files]
    lines += [f"remark     {remark}" for remark in found.remarks]
    lines += [f"unchecked  {what}" for what in found.unchecked]
    lines += [f"defect     {defect}" for defect in found.defects]
    if not found.defects:
        lines.append("ok         no defect was found")
    return "\n".join(lines)


def _model(model: InspectedModel) -> list[str]:
    base = f" on {model.base}" if model.base else ""
    scaling = f", scaling {model.rotary_scaling}" if model.rotary_scaling else ""
    rotary = f"{model.rotary_base:g}" if model.rotary_base is not None else "?"
    cache = f", KV cache {model.kv_cache_quantization}" if model.kv_cache_quantization else ""
    return [
        f"model      {_or(model.architecture)}{base}, {_or(model.dtype)}, "
        f"quantization {model.quantization or 'none'}{cache}",
        f"shapes     {_or(model.num_hidden_layers)} layers, "
        f"{_or(model.num_attention_heads)} heads in {_or(model.num_key_value_heads)} groups of "
        f"{_or(model.head_size)}, hidden {_or(model.hidden_size)}, "
        f"inner {_or(model.intermediate_size)}, vocabulary {_or(model.vocab_size)}",
        f"positions  {_or(model.max_position_embeddings)}, rotary base {rotary}{scaling}",
    ]


def _speculation(speculation: Speculation) -> str:
    parts = [speculation.mode] if speculation.mode else []
    if speculation.num_medusa_heads:
        layers = speculation.num_medusa_layers or 0
        parts.append(f"{speculation.num_medusa_heads} Medusa heads, residual layers: {layers}")
    if speculation.redrafter_num_beams:
        beams = f"{speculation.redrafter_num_beams} beams of a ReDrafter"
        parts.append(f"{beams}, {speculation.redrafter_draft_len_per_beam} tokens each")
    if speculation.num_eagle_layers:
        parts.append(f"an EAGLE drafter, levels of tree: {speculation.num_eagle_layers}")
    if speculation.eagle3_draft_vocab_size:
        read = ", ".join(map(str, speculation.eagle3_layer_ids))
        inputs = f"the inputs of layers {read}" if read else "the inputs of the usual layers"
        words = f"{speculation.eagle3_draft_vocab_size} tokens from {inputs}"
        parts.append(f"an EAGLE-3 drafter of {words}")
    if speculation.max_draft_len:
        parts.append(f"{speculation.max_draft_len} drafted tokens a step")
    return ", ".join(parts) or "as the build decides"


def _limits(limits: EngineLimits) -> str:
    paged = {True: "on", False: "off", None: None}[limits.paged_context_fmha]
    named = {
        "batch": limits.max_batch_size,
        "input": limits.max_input_len,
        "sequence": limits.max_seq_len,
        "tokens a step": limits.max_num_tokens,
        "beams": limits.max_beam_width,
        "KV cache": limits.kv_cache_type,
        "paged context attention": paged,
    }
    return ", ".join(f"{name} {value}" for name, value in named.items() if value is not None)


def _file(file: File) -> str:
    size = f"{file.size / _GIB:.2f} GiB" if file.size >= _GIB / 10 else f"{file.size} bytes"
    if file.tensors is None:
        return f"{file.name}, {size}"
    return f"{file.name}, {size}, {file.tensors} tensors of {', '.join(file.dtypes)}"


def _or(value: int | str | None) -> str:
    return "?" if value is None else str(value)

"""The architectures for which TensorRT-LLM's LLM API has a class of its own (`backend: pytorch`).

They are those that `tensorrt_llm/_torch/models/__init__.py` imports in a copy of late 2025, between
releases 1.1 and 1.2, as far as they answer in text, and those in the table of 1.2.1
(`1.2.1/models/supported-models.html`, branch gh-pages, commit 58fb435e). The table leaves some out
that have a class, so an architecture that is not here may have one all the same.
"""

ARCHITECTURES = frozenset(
    {
        "DeciLMForCausalLM",
        "DeepseekV32ForCausalLM",
        "DeepseekV3ForCausalLM",
        "Exaone4ForCausalLM",
        "Gemma3ForCausalLM",
        "Gemma3ForConditionalGeneration",
        "GptOssForCausalLM",
        "HunYuanDenseV1ForCausalLM",
        "HunYuanMoEV1ForCausalLM",
        "Llama4ForConditionalGeneration",
        "LlamaForCausalLM",
        "LlavaNextForConditionalGeneration",
        "Mistral3ForConditionalGeneration",
        "MiniMaxM2ForCausalLM",
        "MistralForCausalLM",
        "MixtralForCausalLM",
        "MllamaForConditionalGeneration",
        "NemotronForCausalLM",
        "NemotronHForCausalLM",
        "NemotronNASForCausalLM",
        "Phi3ForCausalLM",
        "Phi4MMForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen2MoeForCausalLM",
        "Qwen2VLForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen3ForCausalLM",
        "Qwen3MoeForCausalLM",
        "Qwen3NextForCausalLM",
        "SeedOssForCausalLM",
    }
)

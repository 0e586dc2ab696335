"""TensorRT-LLM without engines: Triton's `llmapi` model on TensorRT-LLM's PyTorch backend.

Not here: an import of tensorrt_llm; only the server has it.
"""

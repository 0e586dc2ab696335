"""TensorRT-LLM without engines: Triton's `llmapi` model on TensorRT-LLM's PyTorch backend."""

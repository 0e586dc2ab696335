"""TensorRT-LLM without engines: Triton's `llmapi` model on upstream's PyTorch backend."""

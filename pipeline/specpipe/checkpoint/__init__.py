"""Stage 1: Hugging Face checkpoints in, TensorRT-LLM checkpoints out."""

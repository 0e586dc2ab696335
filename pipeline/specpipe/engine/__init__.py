"""Stage 2: TensorRT-LLM checkpoints into engines, one folder per backend."""

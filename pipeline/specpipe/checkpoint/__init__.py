"""Stage 1: converts Hugging Face checkpoints to TensorRT-LLM checkpoints.

Not here: how an engine computes (`engine`), and which checkpoints a run needs (`plan`).
"""

"""Stage 2: compiles TensorRT-LLM checkpoints to engines; one folder per backend.

Not here: Hugging Face's names and layouts (`checkpoint`), and the algorithms of speculation
(`speculate`).
"""

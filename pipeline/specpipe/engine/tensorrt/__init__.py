"""TensorRT-LLM engines for NVIDIA GPUs, built in the container that serves them.

Not here: an import of tensorrt_llm; its programs are started, and its files are read.
"""

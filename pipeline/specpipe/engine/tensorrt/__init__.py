"""TensorRT-LLM engines for NVIDIA GPUs, built in the container that serves them."""

"""TensorRT-LLM engines for NVIDIA GPUs; built inside the container that will serve them."""

"""Stage 3: engines into a Triton model repository, and the models that run inside Triton."""

"""Stage 3: write a Triton model repository; also the models that run inside Triton."""

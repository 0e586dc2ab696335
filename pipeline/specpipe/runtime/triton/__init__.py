"""The models that Triton's Python backend runs: its front of the runtime."""

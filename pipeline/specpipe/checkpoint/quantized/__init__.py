"""Quantised checkpoints: calibrated here, or quantised by others; in TensorRT-LLM's layouts."""

"""Quantized checkpoints in TensorRT-LLM's layouts: calibrated here, or quantized by others.

Not here: weight-only int8 and int4 of the CPU engine (`engine/openvino/weights.py`).
"""

"""The CPU engine: OpenVINO, driven step by step from Python."""

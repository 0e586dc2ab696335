"""The CPU engine: an OpenVINO graph, run step by step from Python."""

"""specpipe: one YAML file to a Triton server that decodes speculatively, and proof of it."""

__version__ = "0.1.0"

"""specpipe: builds a Triton server with speculative decoding from one YAML file, and validates it.

Not here: modules. Each belongs to a part below, whose docstring states what it holds.
"""

__version__ = "0.1.0"

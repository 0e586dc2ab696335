"""vLLM: serves Hugging Face models as they are, on GPUs and on CPUs, with an OpenAI API.

Not here: an import of vllm; only the server has it. `releases.json` has what differs by release.
"""

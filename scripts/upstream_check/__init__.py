"""The parts of scripts/check-upstream: TensorRT-LLM's own Python, run on a CPU.

`module` and what it imports stand in for the module `tensorrt`: the layers of a network compute
instead of being recorded. `world` makes a tree of TensorRT-LLM importable, `plugins`, `attention`
and `quantized` compute what its C++ plugins compute, `runner` runs `trtllm-build`. `models` makes
tiny models, `cases` lists what is checked, and `judge` compares with transformers. `verify` and
`verify_beams` compare verdicts on drafts, which `verdicts` makes.

Not here: a line of TensorRT-LLM's code. The user brings the tree.
"""

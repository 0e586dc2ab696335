"""The models that Triton's Python backend runs.

Not here: scheduling and decoding, which are independent of Triton. Only `api` imports Triton's
module.
"""

"""The models that Triton runs. `scheduler`, `tokens` and `requests` are independent of Triton."""

"""What Triton runs. `scheduler`, `tokens` and `requests` know nothing of Triton."""

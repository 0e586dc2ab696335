"""Stage 5: the endpoint against the Hugging Face reference."""

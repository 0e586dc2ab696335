"""Beside the way: which settings of a method are fastest here, on these prompts."""

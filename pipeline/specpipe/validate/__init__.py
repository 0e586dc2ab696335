"""Stage 5: compares a server's answers and speed with the Hugging Face reference.

Not here: prediction of speed (`plan`, `tune`). Every figure is measured.
"""

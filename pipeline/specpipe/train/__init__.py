"""Training: Medusa heads and draft models out of the target itself."""

"""Executables that stand in for what a machine with a GPU has; they check what they are told."""

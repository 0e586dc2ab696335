"""Finds the fastest settings of a method, or the fastest method, for given prompts.

Not here: the methods themselves (`speculate`); their served generators are replayed.
"""

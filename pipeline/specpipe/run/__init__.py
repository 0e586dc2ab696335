"""The artifacts of a run: how each is made, in which order, and which are up to date.

Not here: the work itself, which the stages do.
"""

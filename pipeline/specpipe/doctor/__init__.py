"""`specpipe doctor`: lists what this machine has, and what a run lacks.

Not here: reasons that follow from the config only (`plan`).
"""

"""The YAML file of a run as frozen records.

Not here: anything that opens a model or looks at the machine.
"""

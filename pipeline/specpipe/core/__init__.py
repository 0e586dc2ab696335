"""The records and interfaces that every part uses: contracts, model facts, artifacts, errors.

Not here: a stage, an engine, a method, or a key of the YAML file.
"""

"""Pages and text for people.

Not here: measurements and decisions.
"""

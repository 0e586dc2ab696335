"""What would be built, whether it fits, and every reason against it.

Not here: reading of weights, and building. Files are looked up in `opened` and `resolve` only; the
rest are pure functions over facts.
"""

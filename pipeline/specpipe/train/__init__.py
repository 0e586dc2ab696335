"""Training of Medusa heads, ReDrafters and draft models for a target.

Not here: how a drafter is read or converted (`checkpoint`).
"""

"""Training of Medusa heads, ReDrafters, EAGLE-3 drafters and draft models for a target.

Not here: how a drafter is read or converted (`checkpoint`).
"""

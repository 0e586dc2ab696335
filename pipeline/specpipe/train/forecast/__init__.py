"""Estimates of what a training needs, before its first step: memory, disk, time.

Not here: the training itself (`train/loop.py`), and where it computes (`train/placement.py`).
"""

"""The text of a training as users have it: files, folders, datasets, and the shapes of chats.

Not here: what a drafter learns from a document (`train/text.py`), and answers of the target
(`train/answers.py`).
"""

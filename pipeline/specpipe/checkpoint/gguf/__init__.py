"""GGUF files: what they hold, the config.json that they stand for, and tensors by HF's names.

Not here: their tokenizers, which transformers makes; see `checkpoint/tokenizer.py`.
"""

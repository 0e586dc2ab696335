"""A random model that only answers in words, so that texts have the tokens that made them."""

from pathlib import Path

from tests.helpers.models import make_llama


def make_wordy(folder: Path) -> Path:
    """Write the model and its tokenizer into `folder`; its answers never end by themselves."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make_llama(folder, seed=1, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    output = model.get_output_embeddings().weight
    texts = [tokenizer.decode([token]) for token in range(len(output))]
    words = [t.startswith(" ") and t[1:].isascii() and t[1:].isalpha() for t in texts]
    with torch.no_grad():
        output[~torch.tensor(words)] = 0.0
    model.save_pretrained(folder)
    return folder

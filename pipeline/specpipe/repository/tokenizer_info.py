"""What xgrammar must know of a tokenizer, in the file that TensorRT-LLM's C++ backend reads.

Upstream writes it with examples/generate_xgrammar_tokenizer_info.py and reads it in
`getGuidedDecodingConfigFromParams` (model_instance_state.cc); `TokenizerInfo::FromHuggingFace` pads
the vocabulary to the engine's.
"""

import json
from pathlib import Path

from specpipe.runtime.tokens import load_tokenizer

INFO = "xgrammar_tokenizer_info.json"
INFO_PATH = "xgrammar_tokenizer_info_path"  # the parameter that names the file


def tokenizer_info(folder: Path) -> str:
    """Return the file's text for a repository's tokenizer.

    Unlike upstream's, a token keeps its place if ids before it are not in use, special tokens have
    no text, so that no guide permits them, every end token of the model ends an answer, and the
    mark of a space is a space where xgrammar would not see it. Raises ConfigError if the tokenizer
    is missing or damaged.
    """
    known = load_tokenizer(folder)
    serialized = known.tokenizer.to_str()
    mark = _unseen_mark(serialized)
    vocabulary = [""] * known.vocab_size
    for text, number in known.tokenizer.get_vocab().items():
        added = known.added.get(number)
        if number < known.vocab_size and not (added and added.special):
            vocabulary[number] = text.replace(mark, " ") if mark else text
    values = {
        "encoded_vocab": vocabulary,
        "tokenizer_str": serialized,
        "stop_token_ids": list(known.end_ids),
    }
    return json.dumps(values, ensure_ascii=False) + "\n"


def _unseen_mark(serialized: str) -> str:
    """Return the mark of a space in the tokens of a decoder that xgrammar does not know."""
    decoder = json.loads(serialized)["decoder"] or {}
    return str(decoder["replacement"]) if decoder.get("type") == "Metaspace" else ""

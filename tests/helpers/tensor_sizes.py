"""Counts the bytes of the tensors that a block of code makes."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that an operation returned in a `with` block.

    Views do not count: they have no memory of their own.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operation and look at its results."""
        given = {t.untyped_storage().data_ptr() for t in tree_leaves(args) if _is_tensor(t)}
        found = func(*args, **(kwargs or {}))
        for made in tree_leaves(found):
            if _is_tensor(made) and made.untyped_storage().data_ptr() not in given:
                self.size = max(self.size, made.nbytes)
        return found


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)

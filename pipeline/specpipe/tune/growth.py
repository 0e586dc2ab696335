"""What an EAGLE-3 drafter predicts after a token: all that smaller trees need, recorded once.

The drafter reads hidden states of the target, which only a running engine has. So it is run while
answers are recorded, on more nodes than any setting that is tried: the likeliest of each level, and
the path of first choices. A replay answers from this record. It has nothing for nodes that only
prompt lookup drafts, so a hybrid is predicted to emit fewer tokens than it does.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from specpipe.core.contracts import ROOT, Asking, Extensions
from specpipe.core.engines import Branch
from specpipe.speculate.eagle3 import LayerPredictor
from specpipe.speculate.growth import LEAST_CHANCE, Node, Shares

BEAMS, LEVELS = 4, 6  # the most that a setting has which is tried
NOTHING = -1  # a token that is never predicted

Path = tuple[int, ...]  # draft tokens below the root
Grown = Mapping[Path, Shares]


def grow_all(tokens: Sequence[int]) -> Asking[Grown]:
    """Run the drafter on the paths that any setting would run it on."""
    drafter = LayerPredictor(tokens, BEAMS, LEVELS)
    first = Node(tokens[-1])  # of the path of first choices
    asked, found = [first], dict[Path, Shares]()
    for _ in range(LEVELS):
        shares = yield from drafter.ask(asked)
        if not shares:
            break
        found |= {_path(node): one for node, one in zip(asked, shares, strict=True)}
        level = [
            Node(token, node, node.chance * share, node.depth + 1)
            for node, one in zip(asked, shares, strict=True)
            for token, share in one.items()
        ]
        first = max((node for node in level if node.parent is first), key=lambda n: n.chance)
        likeliest = sorted(level, key=lambda node: -node.chance)[:BEAMS]
        worth = sum(node.chance for node in likeliest) >= LEAST_CHANCE
        asked = [*dict.fromkeys([*(likeliest if worth else ()), first])]
    return found


def _path(node: Node) -> Path:
    return () if node.parent is None else (*_path(node.parent), node.token)


def recorded(known: Grown, branch: Branch) -> Extensions:
    """Return what was recorded for the wanted nodes of a draft; nothing for unknown ones."""
    paths: list[Path] = []
    for token, parent in zip(branch.draft.tokens, branch.draft.parents, strict=True):
        above = () if parent == ROOT else paths[int(parent)]
        paths.append((*above, int(token)))
    wanted = branch.wanted.tolist()
    shares = [known.get(() if node == ROOT else paths[node], {}) for node in wanted]
    width = max((len(one) for one in shares), default=0)
    tokens = np.full((len(wanted), width), NOTHING, np.int64)
    probs = np.zeros((len(wanted), width))
    for row, one in enumerate(shares):
        tokens[row, : len(one)] = list(one.keys())
        probs[row, : len(one)] = list(one.values())
    return Extensions(tokens, probs, np.zeros((len(wanted), 1), np.float32))

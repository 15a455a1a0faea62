"""Labels in sentences: a layer that has only a number is called by it, and many are cut short."""

from __future__ import annotations

from collections.abc import Sequence


def called(label: str) -> str:
    """What a layer is called in a sentence, where `40` alone would be read as a number.

    >>> called("fc1"), called("40"), called("0.2#3")
    ('fc1', 'layer 40', 'layer 0.2#3')
    """
    return label if any(letter.isalpha() for letter in label) else f"layer {label}"


def printable(text: str) -> str:
    r"""Without what would command a terminal: a name from a file may hold anything.

    >>> printable("fc1\x1b]0;owned\x07\n")
    'fc1?]0;owned?\n'
    """
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


def listed(labels: Sequence[str]) -> str:
    """What they are called, of many the first three.

    >>> listed(["fc1", "fc2"]), listed(["0", "2", "4", "6"])
    ('fc1, fc2', 'layer 0, layer 2, layer 4 and 1 more')
    """
    more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    return ", ".join(map(called, labels[:3])) + more

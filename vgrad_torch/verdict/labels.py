"""How layers are named in sentences."""

from __future__ import annotations

from collections.abc import Sequence


def called(label: str) -> str:
    """The name of a layer in a sentence. A label without letters, such as `40`, would be read as a number.

    >>> called("fc1"), called("40"), called("0.2#3")
    ('fc1', 'layer 40', 'layer 0.2#3')
    """
    return label if any(letter.isalpha() for letter in label) else f"layer {label}"


def printable(text: str) -> str:
    r"""The text without control characters, since a name from a file may hold commands for the terminal.

    >>> printable("fc1\x1b]0;owned\x07\n")
    'fc1?]0;owned?\n'
    """
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


def listed(labels: Sequence[str]) -> str:
    """The names of several layers; of more than three, the first three and a count.

    >>> listed(["fc1", "fc2"]), listed(["0", "2", "4", "6"])
    ('fc1, fc2', 'layer 0, layer 2, layer 4 and 1 more')
    """
    more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    return ", ".join(map(called, labels[:3])) + more

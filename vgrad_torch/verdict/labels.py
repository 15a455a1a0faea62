"""How layers and numbers are written in sentences."""

from __future__ import annotations

from collections.abc import Sequence


def called(label: str) -> str:
    """The name of a layer in a sentence. A label without letters, such as `40`, would be read as a number.

    >>> called("fc1"), called("40"), called("0.2#3")
    ('fc1', 'layer 40', 'layer 0.2#3')
    """
    return label if any(letter.isalpha() for letter in label) else f"layer {label}"


def listed(labels: Sequence[str]) -> str:
    """The names of several layers; of more than three, the first three and a count.

    >>> listed(["fc1", "fc2"]), listed(["0", "2", "4", "6"])
    ('fc1 and fc2', 'layer 0, layer 2, layer 4 and 1 more')
    """
    names = [called(label) for label in labels]
    return enumerated(names if len(names) <= 3 else [*names[:3], f"{len(names) - 3} more"])


def enumerated(parts: Sequence[str]) -> str:
    """At least one part: `a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def printable(text: str) -> str:
    r"""The text without control characters, since a name from a file may hold commands for the terminal.

    >>> printable("fc1\x1b]0;owned\x07\n")
    'fc1?]0;owned?\n'
    """
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


def two_digits(value: float) -> str:
    """A number with two significant digits.

    >>> two_digits(3.24e-4), two_digits(251.3), two_digits(0.0)
    ('0.00032', '250', '0')
    """
    return f"{float(f'{value:.2g}'):g}"


def four_digits(value: float) -> str:
    """A number with four significant digits, such as a loss.

    >>> four_digits(2.30259), four_digits(1.5e-7)
    ('2.303', '1.5e-07')
    """
    return f"{value:.4g}"


def power_of_ten(exponent: float) -> str:
    """10**exponent with two significant digits.

    >>> power_of_ten(-4.2), power_of_ten(4.6)
    ('6.3e-05', '40,000')
    """
    value = 10**exponent
    return f"{float(two_digits(value)):,g}" if 1000 <= value < 1e6 else two_digits(value)

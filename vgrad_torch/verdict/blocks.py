"""Blocks: the parts of a model that repeat, such as `h.0` and `h.1`, found from the names of its layers alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby, islice

from vgrad_torch.verdict.labels import listed

MANY = 30
"""A table of more layers than this is grouped by block."""

Path = tuple[str, ...]
"""A name or the beginning of a name, split at its dots."""

_ALIKE = 0.5
"""Two modules are alike if they share at least this part of the names of their layers."""

_PAIRS = 2000
"""Largest number of pairs of modules that are compared in one container."""


@dataclass(frozen=True, slots=True)
class Group:
    """Layers in a row: those of one block, or a layer that stands alone.

    Attributes:
        name: the name of the block or the layer, without the shared prefix.
        start: the place of the first layer.
        end: the place after the last layer.
        inside: the names of the layers within the block; empty for a layer that stands alone.
    """

    name: str
    start: int
    end: int
    inside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Blocks:
    """The layers of a model by block.

    Attributes:
        prefix: what all names begin with, but those of at most two layers; it ends with a dot, or is empty.
        names: the names of the layers without the prefix.
        groups: the blocks, and the layers that stand alone, in forward order.
        exceptions: the names that do not begin with the prefix.
    """

    prefix: str
    names: tuple[str, ...]
    groups: tuple[Group, ...]
    exceptions: tuple[str, ...]

    @property
    def found(self) -> bool:
        """Whether there is any block."""
        return any(group.inside for group in self.groups)

    def remark(self) -> str:
        """A sentence about the prefix; empty if there is none."""
        if not self.prefix:
            return ""
        others = f" but {listed(self.exceptions)}" if self.exceptions else ""
        return f"'{self.prefix}' is left out at the beginning of all names{others}."


def blocks(labels: Sequence[str]) -> Blocks:
    """The layers with these labels, which are in forward order, by block.

    A block is a numbered module, such as `h.0`, with at least two layers, if modules beside it have layers of the same
    names. Of nested ones the innermost is taken, but one of two layers, such as a convolution and its norm, only where
    there is no larger one. A block that is left and entered again is two groups.

    >>> found = blocks(["t.wte", "t.h.0.attn", "t.h.0.fc", "t.h.1.attn", "t.h.1.fc", *["t.h.2.fc"] * 5, "head"])
    >>> found.prefix, [group.name for group in found.groups][:3], found.groups[1].inside
    ('t.', ['wte', 'h.0', 'h.1'], ('attn', 'fc'))
    >>> blocks(["0", "2", "4"]).found, blocks(["fc1", "fc2"]).found, blocks(["a.0.q", "a.0.k", "a.1.w"]).found
    (False, False, False)
    """
    paths = [tuple(_name(label).split(".")) for label in labels]
    repeated = _repeated(paths)
    within = {path[:length] for path in paths for length in range(1, len(path))}
    homes = [_home(path, repeated, within) for path in paths]
    prefix, exceptions = _prefix(labels, paths, homes)
    names = tuple(label.removeprefix(prefix) for label in labels)
    return Blocks(prefix, names, tuple(_groups(names, homes, prefix)), exceptions)


def _name(label: str) -> str:
    """The label without the number of the call."""
    name, mark, call = label.rpartition("#")
    return name if mark and call.isdecimal() else label


def _call(label: str) -> str:
    return label[len(_name(label)) :]


@dataclass(frozen=True, slots=True)
class _Module:
    """A numbered module that a layer is in: `length` parts of the layer's name, in a container with others like it."""

    container: Path
    number: str
    length: int


def _modules(path: Path) -> Iterator[_Module]:
    for place, part in enumerate(path):
        letters, number = _split(part)
        if number:
            yield _Module((*path[:place], letters), number, place + 1)


def _split(part: str) -> tuple[str, str]:
    """The number at the end of a part of a name, and what is before it."""
    letters = part.rstrip("0123456789")
    return letters, part[len(letters) :]


def _repeated(paths: Sequence[Path]) -> Mapping[Path, int]:
    """The containers of repeated modules -> the largest number of layers in one of these modules.

    A container with one module counts if the same container elsewhere, with other numbers, has repeated modules.
    """
    members: dict[Path, dict[str, set[Path]]] = defaultdict(lambda: defaultdict(set))
    for path in set(paths):
        for module in _modules(path):
            members[module.container][module.number].add(path[module.length :])
    large = {container: [x for x in modules.values() if len(x) > 1] for container, modules in members.items()}
    repeated = {container for container, modules in large.items() if _any_alike(modules)}
    kinds = set(map(_unnumbered, repeated))
    return {
        container: max(map(len, modules))
        for container, modules in large.items()
        if container in repeated or (modules and len(members[container]) == 1 and _unnumbered(container) in kinds)
    }


def _unnumbered(path: Path) -> Path:
    return tuple(_split(part)[0] for part in path)


def _any_alike(modules: Sequence[set[Path]]) -> bool:
    if len({frozenset(layers) for layers in modules}) < len(modules):
        return True
    pairs = islice(combinations(modules, 2), _PAIRS)
    return any(len(one & other) >= _ALIKE * len(one | other) for one, other in pairs)


def _home(path: Path, repeated: Mapping[Path, int], within: Container[Path]) -> Path:
    """The block that a layer is in; empty if it stands alone. `within` are the modules that hold layers.

    Modules whose name has letters too, such as `block1`, count only if they have three layers.
    """
    found = [x for x in _modules(path) if x.container in repeated and path[: x.length] in within]
    larger = [module for module in found if repeated[module.container] > 2]
    numeric = [module for module in found if not module.container[-1]]
    best = [module for module in larger if module in numeric] or numeric or larger
    return path[: best[-1].length] if best else ()


def _prefix(labels: Sequence[str], paths: Sequence[Path], homes: Sequence[Path]) -> tuple[str, Path]:
    """What almost all names begin with, above the containers of the blocks; and the labels that do not."""
    spared = min(2, len(paths) // 10)
    depth = min([len(home) - 2 for home in homes if home] or [max(map(len, paths), default=1) - 1])
    best: Path = ()
    for length in range(1, depth + 1):
        beginnings = Counter(path[:length] for path in paths if len(path) > length)
        beginning, number = max(beginnings.items(), key=lambda item: item[1], default=((), 0))
        if number < max(len(paths) - spared, 2):
            break
        best = beginning
    prefix = "".join(f"{part}." for part in best)
    exceptions = tuple(label for label in labels if not label.startswith(prefix))
    shortened = {label.removeprefix(prefix) for label in labels if label.startswith(prefix)}
    return ("", ()) if shortened & {*exceptions} else (prefix, exceptions)


def _groups(names: Sequence[str], homes: Sequence[Path], prefix: str) -> Iterator[Group]:
    place = 0
    for home, run in groupby(homes):
        start, place = place, place + len(list(run))
        layers = names[start:place]
        if not home or len(layers) == 1:
            yield from (Group(name, start + i, start + i + 1) for i, name in enumerate(layers))
            continue
        block = ".".join(home).removeprefix(prefix)
        calls = {_call(name) for name in layers}
        inside = tuple(name.removeprefix(f"{block}.") for name in layers)
        yield Group(block + (calls.pop() if len(calls) == 1 else ""), start, place, inside)


def chosen(found: Blocks, labels: Sequence[str], text: str) -> list[int]:
    """The places of the layers in a block or module, or of those with `text` in their name.

    >>> labels = ["h.3.attn", "h.3.fc", "h.30.attn", "h.30.fc"]
    >>> chosen(blocks(labels), labels, "h.3"), chosen(blocks(labels), labels, "attn")
    ([0, 1], [0, 2])
    """

    def within(label: str) -> bool:
        name = label.removeprefix(found.prefix)
        return any(x == text or _name(x) == text or x.startswith(f"{text}.") for x in (label, name))

    of_block = {i for group in found.groups if group.name == text for i in range(group.start, group.end)}
    of_module = of_block or {i for i, label in enumerate(labels) if within(label)}
    return sorted(of_module) or [i for i, label in enumerate(labels) if text.lower() in label.lower()]


def shortened(name: str, most: int) -> str:
    """A long name with an ellipsis in the middle, of at most `most` letters.

    >>> shortened("encoder.block.0.layer.0.SelfAttention.q", 20), shortened("fc1", 20)
    ('encoder.b…ttention.q', 'fc1')
    """
    if len(name) <= most:
        return name
    begin = max((most - 1) // 2, 0)
    end = max(most - 1 - begin, 0)
    return f"{name[:begin]}…{name[len(name) - end :]}"

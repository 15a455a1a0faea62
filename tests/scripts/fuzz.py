"""Damaged and forged files: each is refused in one sentence or does no harm; `python -m tests.scripts.fuzz COUNT SEED`.

Checkpoints, configs, IDX files and event files are mutated, also such that their checksums are right again. A
traceback, a hang, or code that runs from a file ends the fuzzing; the file is then left in the folder that is named.
"""

from __future__ import annotations

import copy
import gzip
import hashlib
import io
import json
import random
import shutil
import signal
import struct
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensorboard import context
from tensorboard import errors as tensorboard_errors
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

from vgrad_torch import training
from vgrad_torch.errors import UsageError
from vgrad_torch.tensorboard.eventfile import cut, masked_crc32c
from vgrad_torch.tensorboard.plugin.reader import Query, Reader
from vgrad_torch.training import checkpoint_file, data
from vgrad_torch.training.recipes import recipe
from vgrad_torch.training.run_folder import RunFolder, read_config

PATIENCE = 60
"""Seconds that one file may take."""

Bytes = bytes | bytearray


@dataclass(frozen=True)
class Originals:
    """Files that are whole: a run that was killed, and the four files of a tiny MNIST."""

    run: Path
    idx: Path


def originals(folder: Path) -> Originals:
    given = {"epochs": 2, "hidden": (4, 4), "every": 9, "optimizer": "adam", "norm": "batch", "seed": 1}
    config = recipe("circles", runs=str(folder), name="run", **given)

    def copy_late(snapshot: Any) -> None:
        if snapshot.step == 45:
            shutil.copytree(folder / "run", folder / "killed")

    training.run(config, on_sample=copy_late)
    idx = folder / "idx"
    idx.mkdir()
    for part, count in (("train", 40), ("t10k", 8)):
        pixels, labels = bytes(count * 4), bytes(n % 10 for n in range(count))
        (idx / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, count, 2, 2) + pixels)
        (idx / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels)
    return Originals(folder / "killed", idx)


# --- mutations ------------------------------------------------------------------------------------------------------


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Bits flipped, or bytes cut off, put in, repeated, moved or overwritten."""
    found = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 3, 20])):
        a, b = sorted(chance.randrange(len(found) + 1) for _ in range(2))
        b = min(b, a + chance.choice([1, 4, 16, 1000]))
        kind = chance.choice(["flip", "flip", "flip", "end", "put in", "repeat", "leave out", "overwrite", "move"])
        if kind == "flip" and a < len(found):
            found[a] ^= 1 << chance.randrange(8)
        elif kind == "end":
            del found[a:]
        elif kind == "put in":
            found[a:a] = chance.randbytes(chance.choice([1, 8, 300]))
        elif kind == "repeat":
            found[a:a] = found[a:b]
        elif kind == "leave out":
            del found[a:b]
        elif kind == "overwrite":
            found[a:b] = bytes([chance.choice([0, 255])]) * (b - a)
        elif kind == "move":
            piece = found[a:b]
            del found[a:b]
            found[chance.randrange(len(found) + 1) : 0] = piece
    return bytes(found)


def forged(tree: Any, chance: random.Random) -> Any:
    """A copy of nested dicts and lists in which one thing is another, or is not there, or something is added."""
    tree = copy.deepcopy(tree)
    place = tree
    while True:
        key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or chance.random() < 0.1:
            break
        place = inner
    kind = chance.choice(["other", "other", "other", "gone", "more"])
    if kind == "gone":
        del place[key]
    elif kind == "more" and isinstance(place, dict):
        place[chance.choice(["x", 7, None])] = chance.choice(OTHERS)
    else:
        place[key] = chance.choice([*OTHERS, *_like(inner, chance)])
    return tree


OTHERS = [
    None, True, 0, -1, 3, 2**63, -(10**30), 0.5, float("nan"), float("inf"), -1e308, "", "x", "\0", "../x", "/etc/x",
    "\ud800", "[" * 100_000, [], [1], {}, {"a": 1}, torch.zeros(0), torch.zeros(3, 3), torch.full((), torch.nan),
    torch.ones(4, dtype=torch.int8), torch.ones(2, 2).to_sparse(), torch.zeros(1).expand(9, 9),
]  # fmt: skip


def _like(value: Any, chance: random.Random) -> list[Any]:
    """Others of the same type."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, -value, value * chance.choice([0, 10, 1e300])]
    if isinstance(value, str):
        return [mutated(value.encode(), chance).decode(errors="replace")]
    if isinstance(value, torch.Tensor):
        noise = torch.randint(-3, 3, value.shape).to(value.dtype)
        return [value + noise, value.to(torch.float64), value.reshape(-1)[:-1], value.unsqueeze(0), value * torch.nan]
    return []


def sealed(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


def members(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def archive_of(content: dict[str, bytes], chance: random.Random) -> bytes:
    kind = chance.choice([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", kind) as opened:
        for name, each in content.items():
            opened.writestr(name, each)
    return written.getvalue()


# --- what is tried --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """One file to be mutated: a folder of its own, with the originals copied into it."""

    folder: Path
    chance: random.Random

    @property
    def checkpoint(self) -> Path:
        return self.folder / "run" / checkpoint_file.FILE

    def resume(self) -> None:
        """As `vgrad train --resume` does."""
        begun = RunFolder.read(self.folder / "run")
        training.run(begun.config, saved=begun)


def damaged_checkpoint(trial: Trial) -> None:
    trial.checkpoint.write_bytes(mutated(trial.checkpoint.read_bytes(), trial.chance))
    trial.resume()


def forged_archive(trial: Trial) -> None:
    """A member of the archive mutated, gone, under another name or of another member's content."""
    found = members(trial.checkpoint.read_bytes()[:-32])
    name, other = trial.chance.sample(list(found), 2)
    if trial.chance.random() < 0.3:
        name = next(each for each in found if each.endswith("data.pkl"))
    kind = trial.chance.choice(["mutated", "mutated", "gone", "renamed", "another"])
    if kind == "mutated":
        found[name] = mutated(found[name], trial.chance)
    elif kind == "another":
        found[name] = found[other]
    else:
        content = found.pop(name)
        if kind == "renamed":
            found[trial.chance.choice(["../../x", "archive/data/99", "/x", name.upper()])] = content
    trial.checkpoint.write_bytes(sealed(archive_of(found, trial.chance)))
    trial.resume()


def forged_content(trial: Trial) -> None:
    """Another value, type, shape or key somewhere, written as we write it."""
    content = dict(checkpoint_file.unpack(trial.checkpoint.read_bytes()))
    content["snapshots"] = [json.loads(text) for text in content["snapshots"]]
    content["progress"] = json.loads(content["progress"])
    part = trial.chance.choice(list(content))
    wrong = forged({part: content[part]}, trial.chance)
    content = {**{key: value for key, value in content.items() if key != part}, **wrong}
    if isinstance(snapshots := content.get("snapshots"), list):
        content["snapshots"] = [_json(snapshot) for snapshot in snapshots]
    if isinstance(progress := content.get("progress"), dict):
        content["progress"] = _json(progress)
    trial.checkpoint.write_bytes(checkpoint_file.pack(content))
    trial.resume()


def _json(value: Any) -> str:
    return json.dumps(value, default=lambda tensor: tensor.tolist() if tensor.layout == torch.strided else None)


def code_in_a_pickle(trial: Trial) -> None:
    """What would make the file `executed`, as the archive's pickle or as a bare one, before, behind or alone."""
    found = members(trial.checkpoint.read_bytes()[:-32])
    name = next(each for each in found if each.endswith("data.pkl"))
    text = f"open({str(trial.folder / 'executed')!r}, 'w')"
    call = trial.chance.choice(
        [
            f"cbuiltins\nexec\n(V{text}\ntR",
            f"cbuiltins\neval\n(V{text}\ntR",
            f"cos\nsystem\n(Vtouch {trial.folder / 'executed'}\ntR",
            f"(Vtouch {trial.folder / 'executed'}\niposix\nsystem\n",
            f"csubprocess\nPopen\n(V/usr/bin/touch\nV{trial.folder / 'executed'}\nltR",
            f"ctorch._utils\n_import_dotted_name\n(Vos.system\ntR(Vtouch {trial.folder / 'executed'}\ntR",
            f"cvgrad_torch.files\nwrite_whole\n(cpathlib\nPosixPath\n(V{trial.folder / 'executed'}\ntRB\0\0\0\0tR",
        ]
    ).encode()
    start = found[name][:2]
    variants = [start + call + b".", start + call + b"0" + found[name][2:], found[name][:-1] + call + b"0."]
    found[name] = trial.chance.choice(variants)
    whole = archive_of(found, trial.chance) if trial.chance.random() < 0.8 else found[name]
    trial.checkpoint.write_bytes(sealed(whole))
    trial.resume()
    raise AssertionError("a pickle that calls functions was taken")


def config(trial: Trial) -> None:
    path = trial.folder / "run" / "config.json"
    if trial.chance.random() < 0.5:
        path.write_bytes(mutated(path.read_bytes(), trial.chance))
    else:
        path.write_text(_json(forged(json.loads(path.read_text()), trial.chance)), errors="surrogatepass")
    read_config(trial.folder / "run")
    RunFolder.read(trial.folder / "run")


def idx(trial: Trial) -> None:
    path = trial.chance.choice(sorted((trial.folder / "idx").iterdir()))
    content, zipped = path.read_bytes(), trial.chance.random() < 0.4
    if trial.chance.random() < 0.5:
        content = mutated(content[:16], trial.chance) + content[16:]
    if not zipped or trial.chance.random() < 0.5:
        content = mutated(content, trial.chance)
    packed = gzip.compress(content) if zipped else content
    path.write_bytes(mutated(packed, trial.chance) if zipped and trial.chance.random() < 0.5 else packed)
    data.load("mnist", trial.folder / "idx")


def log(trial: Trial) -> None:
    """An event file, damaged or forged, is cut back, gone on with, and read by the tab."""
    (path,) = (trial.folder / "run").glob("*tfevents*")
    content = path.read_bytes()
    path.write_bytes(
        mutated(content, trial.chance) if trial.chance.random() < 0.5 else _forged_log(content, trial.chance)
    )
    _read_by_the_tab(trial.folder)
    size = path.stat().st_size
    if cut(path, trial.chance.choice([size, size - 1, 0, len(content), trial.chance.randrange(size + 1), -1, 2**70])):
        assert path.stat().st_size <= size
    trial.resume()


def _forged_log(content: bytes, chance: random.Random) -> bytes:
    """One event mutated, under the right checksums."""
    events = list(_events(content))
    place = chance.randrange(len(events))
    events[place] = mutated(events[place], chance)
    lengths = [struct.pack("<Q", len(event)) for event in events]
    check = [[struct.pack("<I", masked_crc32c(part)) for part in pair] for pair in zip(lengths, events, strict=True)]
    parts = zip(lengths, events, check, strict=True)
    return b"".join(length + of_length + event + of_event for length, event, (of_length, of_event) in parts)


def _events(content: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(content):
        length = int.from_bytes(content[at : at + 8], "little")
        yield content[at + 12 : at + 12 + length]
        at += 16 + length


def _read_by_the_tab(folder: Path) -> None:
    """All that the tab asks for; what TensorBoard itself cannot read is none of ours."""
    multiplexer = EventMultiplexer(tensor_size_guidance={"gradient_flow": 0})
    try:
        multiplexer.AddRun(str(folder / "run"), "run").Reload()
        provider = MultiplexerDataProvider(multiplexer, str(folder))
    except Exception:
        return
    reader = Reader(provider, 0)
    place = Query(context.RequestContext(), "")
    reader.notes(place)
    for series in reader.series(place):
        here = place._replace(run=series.run, tag=series.tag)
        with suppress(tensorboard_errors.PublicError):
            found, _ = reader.read(here)
            found.profile(9)
        with suppress(ValueError):  # the tab shows it in place of the theory's line
            reader.theory(here, series.axes.layers, 0)


TRIALS: dict[str, Callable[[Trial], None]] = {
    each.__name__: each
    for each in (damaged_checkpoint, forged_archive, forged_content, code_in_a_pickle, config, idx, log)
}


# --- the loop -------------------------------------------------------------------------------------------------------


@contextmanager
def patience() -> Iterator[None]:
    def hang(number: int, frame: object) -> None:
        raise TimeoutError(f"it took more than {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(kind: str, trial: Trial, whole: Originals) -> str:
    """`refused` or `taken`; whatever else happens is raised."""
    shutil.copytree(whole.run, trial.folder / "run")
    shutil.copytree(whole.idx, trial.folder / "idx")
    try:
        with patience(), warnings.catch_warnings(action="ignore"):
            TRIALS[kind](trial)
    except (UsageError, training.NonFiniteError) as error:
        if not str(error).strip() or "\n" in str(error):
            raise AssertionError(f"not one sentence: {error}") from error
        return "refused"
    finally:
        if (trial.folder / "executed").exists():
            raise AssertionError("code from a file was run")
    return "taken"


def fuzz(count: int, seed: int, folder: Path) -> Counter[tuple[str, str]]:
    """So many files, of each kind in turn, and what became of them."""
    whole = originals(folder)
    found: Counter[tuple[str, str]] = Counter()
    for number in range(count):
        kind = list(TRIALS)[number % len(TRIALS)]
        trial = Trial(folder / f"{number}", random.Random(f"{seed} {number}"))
        torch.manual_seed(number)
        try:
            found[kind, outcome(kind, trial, whole)] += 1
        except BaseException as error:
            raise RuntimeError(f"file {number} of seed {seed}, {kind}, left in {trial.folder}") from error
        shutil.rmtree(trial.folder)
    return found


def main(count: int, seed: int) -> None:
    folder = Path(tempfile.mkdtemp())
    found = fuzz(count, seed, folder)
    shutil.rmtree(folder)
    for kind in TRIALS:
        print(f"{kind:20} {found[kind, 'refused']:5} refused in a sentence, {found[kind, 'taken']:5} did no harm")
    print(f"{count} files with seed {seed}: no traceback, no hang, no code run")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

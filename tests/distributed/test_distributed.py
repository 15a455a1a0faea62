"""watch() under DistributedDataParallel: two real processes, against one process on the joined batch and autograd."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import vgrad_torch as vg
from tests.support import parallel, shared_runs
from tests.support.assertions import assert_matches, chain_oracle
from tests.support.parallel import STEPS, TIMEOUT, TRAININGS, X, Y
from tests.support.warm import run_ranks, started_ranks
from vgrad_torch.distributed.joint_snapshot import merged
from vgrad_torch.distributed.ranks import Ranks
from vgrad_torch.records import QUANTITIES, LayerSnapshot, Snapshot, Stats
from vgrad_torch.watching.selection import select

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")

SCRIPT = Path(parallel.__file__)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both ranks left behind."""
    folder = tmp_path_factory.mktemp("parallel")
    run_ranks(2, SCRIPT, str(folder), "seen")
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return [pickle.loads((folder / f"rank{rank}.pkl").read_bytes()) for rank in range(2)]


# --- one snapshot of both ranks -------------------------------------------------------------------------------------


def in_one_process(name: str) -> list[Snapshot]:
    """The same training with all the ranks' parts as micro-batches, watched as any other.

    Rank 1's come first: it may use a layer that rank 0 does not, which then stands in its place.
    """
    training = TRAININGS[name]
    model = training.model()
    optimizer = parallel.sgd(model)
    rows = list(chain.from_iterable(reversed(training.parts)))
    with vg.watch(model, optimizer, every=1, histograms=lambda step: True) as monitor:
        for _ in range(STEPS):
            optimizer.zero_grad()
            for part in rows:
                (training.loss(model, part) / len(rows)).backward()
            optimizer.step()
    return list(monitor.history)


def assert_same_stats(found: Stats | None, wanted: Stats | None, rel: float) -> None:
    assert (found is None) == (wanted is None)
    if found is None or wanted is None:
        return
    assert (found.count, found.zeros, found.nonfinite) == (wanted.count, wanted.zeros, wanted.nonfinite)
    numbers = [(s.mean, s.std, s.min, s.max) for s in (found, wanted)]
    assert numbers[0] == pytest.approx(numbers[1], rel=rel, abs=rel * wanted.rms)
    assert found.histogram is not None
    assert wanted.histogram is not None
    moved = np.abs(found.histogram.dense() - wanted.histogram.dense()).sum() / 2
    assert moved <= (1 if rel > 1e-7 else 0)  # a float32 may round across the edge of its bucket


@pytest.mark.parametrize("name", TRAININGS)
def test_a_snapshot_is_that_of_the_joined_batch(name: str, ranks: list[dict[str, Any]]) -> None:
    rel = 1e-5 if TRAININGS[name].dtype == torch.float32 else 1e-9
    wanted = in_one_process(name)
    assert len(wanted) == STEPS
    for found in (ranks[0][name]["snapshots"], ranks[1][name]["snapshots"]):
        for mine, oracle in zip(found, wanted, strict=True):
            keys = [[(x.number, x.name, x.call, x.kind, x.size) for x in s.layers] for s in (mine, oracle)]
            assert keys[0] == keys[1]
            for layer, other in zip(mine.layers, oracle.layers, strict=True):
                for quantity in QUANTITIES:
                    assert_same_stats(getattr(layer, quantity), getattr(other, quantity), rel)
                assert layer.update_rms == pytest.approx(other.update_rms, rel=rel)
                assert (layer.activation_gain or 0) == pytest.approx(other.activation_gain or 0, rel=rel)


def test_it_is_what_autograd_says_of_the_joined_batch(ranks: list[dict[str, Any]]) -> None:
    model = parallel.chain().double()
    oracle = chain_oracle(model, X, lambda z: torch.nn.functional.cross_entropy(z, Y))
    assert_matches(ranks[0]["plain"]["snapshots"][0], oracle)


@pytest.mark.parametrize("name", TRAININGS)
def test_watching_changes_no_bit_of_the_weights(name: str, ranks: list[dict[str, Any]]) -> None:
    start = TRAININGS[name].model().state_dict().values()
    for seen in ranks:
        watched, free = seen[name]["watched"], seen[name]["free"]
        assert all(torch.equal(watched[key], free[key]) for key in free)
        assert not any(torch.equal(w, w0) for w, w0 in zip(free.values(), start, strict=True) if w.dim() > 1)


def test_each_rank_has_its_own_rms(ranks: list[dict[str, Any]]) -> None:
    model = parallel.chain().double()
    (layers,) = {s.layers for s in ranks[0]["plain"]["snapshots"][:1]}
    for rank, (rows,) in enumerate(TRAININGS["plain"].parts):
        oracle = chain_oracle(model, X[rows], lambda z: torch.nn.functional.cross_entropy(z, Y[rows]) / 2)  # noqa: B023
        for layer in layers:
            assert layer.rank_rms[rank] == pytest.approx(oracle[layer.name]["output_gradient"].square().mean().sqrt())
    for layer in layers:
        assert math.hypot(*layer.rank_rms) / math.sqrt(2) == pytest.approx(layer.output_gradient.rms)


def test_a_layer_that_one_rank_used(ranks: list[dict[str, Any]]) -> None:
    layers = ranks[0]["uneven, unused"]["snapshots"][0].layers
    assert [layer.name for layer in layers] == ["below", "extra", "above"]
    assert layers[1].output.count == 8 * 8
    assert math.isnan(layers[1].rank_rms[0])
    assert layers[1].rank_rms[1] == pytest.approx(layers[1].output_gradient.rms)


def test_with_a_gradient_scaler(ranks: list[dict[str, Any]]) -> None:
    plain, scaled = ranks[0]["float32"]["snapshots"], ranks[0]["scaled"]
    assert scaled["steps"] == STEPS  # one of four was skipped
    assert [s.step for s in scaled["snapshots"]] == [0, 1, 2] == [s.step for s in ranks[1]["scaled"]["snapshots"]]
    for mine, oracle in zip(scaled["snapshots"], plain, strict=True):
        for layer, other in zip(mine.layers, oracle.layers, strict=True):
            assert layer.output_gradient.rms == pytest.approx(other.output_gradient.rms, rel=1e-5)
            assert layer.weight_gradient.rms == pytest.approx(other.weight_gradient.rms, rel=1e-5)


# --- one schedule ---------------------------------------------------------------------------------------------------


def test_the_ranks_share_one_budget(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["budget"] == ranks[1]["budget"]
    assert 3 < len(ranks[0]["budget"]) < 300


def test_a_callback_that_raises_on_one_rank_does_not_part_them(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["raising"] == ranks[1]["raising"] == [0, 2, 4]


def test_two_models_with_a_monitor_each(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["two_models"] == ranks[1]["two_models"]
    assert ranks[0]["two_models"] == [
        [f"{step} fc1 module fc3" for step in range(STEPS)],
        [f"{step} below extra above" for step in range(0, STEPS, 2)],
    ]


def assert_only_what_is_alike(layer: LayerSnapshot) -> None:
    assert layer.weight
    assert layer.weight_gradient
    assert layer.update_rms
    assert (layer.output, layer.output_gradient, layer.input_gradient, layer.activation_gain) == (None,) * 4
    assert layer.rank_rms == ()


def test_inside_join_only_what_the_ranks_have_alike_is_shown(ranks: list[dict[str, Any]]) -> None:
    assert [[s.step for s in seen["join"]["snapshots"]] for seen in ranks] == [list(range(8)), list(range(4))]
    (warning,) = (w for w in ranks[0]["join"]["warnings"] if "vgrad" in w or "ranks" in w)
    assert "inside join()" in warning
    assert not [w for w in ranks[1]["join"]["warnings"] if "ranks" in w]
    for layer in chain.from_iterable(s.layers for seen in ranks for s in seen["join"]["snapshots"]):
        assert_only_what_is_alike(layer)
    for mine, other in zip(*(seen["join"]["snapshots"][0].layers for seen in ranks), strict=True):
        assert mine.weight_gradient.rms == other.weight_gradient.rms


def test_a_process_group_that_ends_inside_the_block(ranks: list[dict[str, Any]]) -> None:
    for seen in ranks:
        first, *later = seen["destroyed"]["snapshots"]
        assert first.layers[0].rank_rms
        assert later
        for layer in chain.from_iterable(s.layers for s in later):
            assert_only_what_is_alike(layer)
    assert any("destroy_process_group" in w for w in ranks[0]["destroyed"]["warnings"])


# --- one log --------------------------------------------------------------------------------------------------------


def tags(folder: Path) -> set[str]:
    (file,) = folder.iterdir()
    return {value.tag for event in EventFileLoader(str(file)).Load() for value in event.summary.value}


def test_rank_0_alone_writes(folder: Path) -> None:
    assert {p.name for p in folder.iterdir() if p.is_dir()} == {"same", "own0", "user0", "user1", "runs"}
    assert len(list((folder / "runs").glob("*/*tfevents*"))) == len(list((folder / "runs").iterdir())) == 3
    assert tags(folder / "same") == tags(folder / "own0") > tags(folder / "user0") > tags(folder / "user1") == set()


def test_the_log_has_a_line_for_each_rank_in_the_first_layer(folder: Path) -> None:
    lines = {tag for tag in tags(folder / "same") if "rank" in tag}
    assert lines == {f"output_gradient_log10_rms_rank/1-fc1-6x8-rank{rank}" for rank in range(2)}


# --- a run in several processes -------------------------------------------------------------------------------------


def spread(found: Sequence[float], wanted: Sequence[float]) -> float:
    """Largest difference, by the RMS of what it should be."""
    rms = math.sqrt(sum(w * w for w in wanted) / len(wanted))
    return max(abs(f - w) for f, w in zip(found, wanted, strict=True)) / rms


@pytest.mark.parametrize("name", shared_runs.RUNS)
def test_a_shared_batch_trains_as_the_whole_one_does(name: str, ranks: list[dict[str, Any]], tmp_path: Path) -> None:
    alone = shared_runs.run_of(tmp_path, **shared_runs.RUNS[name])
    for seen in ranks:
        found = seen[name]
        for key, weight in alone["weights"].items():
            assert spread(found["weights"][key].flatten().tolist(), weight.flatten().tolist()) < 1e-5
        for epoch, other in zip(found["epochs"], alone["epochs"], strict=True):
            assert epoch[0] == other[0]
            assert [s.loss for s in epoch[1:]] == pytest.approx([s.loss for s in other[1:]], rel=1e-5)
        for mine, oracle in zip(found["snapshots"], alone["snapshots"], strict=True):
            assert mine.step == oracle.step
            for layer, other in zip(mine.layers, oracle.layers, strict=True):
                assert layer.output.count == other.output.count
                for quantity in ("weight_gradient", "output_gradient"):
                    gradients = [getattr(x, quantity).rms for x in (layer, other)]
                    assert gradients[0] == pytest.approx(gradients[1], rel=1e-5)
        assert (found["verdict"], found["folder"]) == (alone["verdict"], alone["folder"])


def test_all_ranks_come_to_the_same_verdict_where_their_batch_norms_differ(ranks: list[dict[str, Any]]) -> None:
    one, other = (seen["normalised"] for seen in ranks)
    means = [key for key in one["weights"] if key.endswith("running_mean")]
    assert means
    assert not any(torch.equal(one["weights"][key], other["weights"][key]) for key in means)
    weights = [key for key in one["weights"] if "running" not in key]
    assert all(torch.equal(one["weights"][key], other["weights"][key]) for key in weights)
    assert (one["epochs"], one["verdict"]) == (other["epochs"], other["verdict"])


def test_a_loss_that_is_not_finite_on_one_rank_stops_all_and_names_it(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["broken"] == ranks[1]["broken"]
    assert ranks[0]["broken"].startswith("on rank 1: the loss became nan at step 0: the first non-finite value is")


def test_what_one_rank_is_refused_all_are(ranks: list[dict[str, Any]]) -> None:
    one, other = (seen["words"] for seen in ranks)
    assert one["together"] == ["on rank 0: not here, 0", "on rank 1: not here, 1", 0]
    assert other["together"] == ["on rank 0: not here, 0", "on rank 1: not here, 1", 1]
    assert one["first"] == other["first"] == ["not here, 0", 0]
    assert one["alike"] == other["alike"] == "the same"
    assert one["options"] == other["options"] == "rank 1 has lr 0.1, but rank 0 has 0.0; start all with the same"
    assert one["all"] == other["all"] == [True, False]
    assert (one["came"], other["came"]) == ([], ["came0"])  # the second one waited


# --- a rank that is lost --------------------------------------------------------------------------------------------


def test_a_lost_rank_does_not_hang_the_other(tmp_path: Path) -> None:
    """Without torchrun, which would end the other rank itself."""
    with ExitStack() as stack:
        processes = started_ranks(2, SCRIPT, str(tmp_path), "lost")
        for process in processes:
            stack.callback(process.kill)
        said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 7], said
    leaves, dies = (pickle.loads((tmp_path / f"{how}.pkl").read_bytes()) for how in ("leaves", "dies"))
    words = "rank 0 of 2 waits for the samples of the others"
    assert all(words in told["notes"][0] and told["waited"] < TIMEOUT + 3 for told in (leaves, dies))
    assert [words in str(told["warnings"]) for told in (leaves, dies)] == [True, False]


# --- without any process --------------------------------------------------------------------------------------------


def stats(mean: float, count: int = 4) -> Stats:
    return Stats(count, 0, 0, mean, 0.0, mean, mean)


def calls(*keys: tuple[str, int]) -> Snapshot:
    gradient = stats(2.0)
    layers = (LayerSnapshot(1, name, "Linear", "2x2", call, output_gradient=gradient) for name, call in keys)
    return Snapshot(0, tuple(layers))


def labels(keys: Sequence[LayerSnapshot]) -> list[str]:
    return [f"{layer.number} {layer.label}" for layer in keys]


def test_calls_that_only_some_ranks_saw_stand_in_their_place() -> None:
    one = calls(("a", 1), ("cell", 1), ("head", 1))
    other = calls(("a", 1), ("cell", 1), ("cell", 2), ("head", 1), ("tail", 1))
    assert labels(merged([one, other]).layers) == ["1 a", "2 cell", "2 cell#2", "3 head", "4 tail"]
    assert merged([one, other])["cell#2"].rank_rms == pytest.approx((math.nan, 2.0), nan_ok=True)


def test_a_model_that_is_not_data_parallel_is_one_rank_without_a_group() -> None:
    ranks = Ranks(parallel.chain())
    assert (ranks.rank, ranks.size, ranks.all_take_part()) == (0, 1, True)
    assert ranks.gather("mine") == ["mine"]


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process only."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_layers_are_named_as_without_data_parallel() -> None:
    whole = nn.ModuleDict({"net": DistributedDataParallel(parallel.chain()), "module": nn.Linear(2, 2)})
    assert list(select(whole).layers) == ["net.fc1", "net.module", "net.fc3", "module"]
    assert list(select(whole, r"^net\.fc").layers) == ["net.fc1", "net.fc3"]
    assert list(select(whole, lambda name, _: name == "net.module").layers) == ["net.module"]
    assert list(select(DistributedDataParallel(nn.Linear(2, 2))).layers) == ["Linear"]
    assert list(select(parallel.compiled(DistributedDataParallel(parallel.chain()))).layers) == ["fc1", "module", "fc3"]


@pytest.mark.usefixtures("alone")
def test_data_parallel_in_one_process_is_as_without(tmp_path: Path) -> None:
    training = TRAININGS["plain"]
    model, bare = DistributedDataParallel(training.model()), training.model()
    histories = []
    for each in (model, bare):
        optimizer = parallel.sgd(each)
        logdir = tmp_path / type(each).__name__
        with vg.watch(each, optimizer, every=1, histograms=False, logdir=logdir) as monitor:
            parallel.step(training, each, optimizer, [slice(0, 24)])
        histories.append([asdict(layer) for layer in monitor.history[0].layers])
    assert histories[0] == histories[1]
    assert tags(tmp_path / "DistributedDataParallel") == tags(tmp_path / "Sequential")

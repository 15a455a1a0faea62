"""watch() on parameters in shards: two and four real processes, against one process on the joined batch."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import vgrad_torch as vg
from tests.support import parallel, sharded
from tests.support.parallel import STEPS, X, Y
from tests.support.warm import run_ranks
from vgrad_torch.distributed.joint_snapshot import merged
from vgrad_torch.records import ACTIVATIONS, QUANTITIES, LayerSnapshot, Snapshot, Stats

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed"),
    pytest.mark.skipif(
        not hasattr(torch.cpu.Stream, "record_event"), reason="in this torch fully_shard does not work on a CPU"
    ),
]

SCRIPT = Path(sharded.__file__)
SHARDINGS = (
    "each layer",
    "each layer, float32",
    "all in one",
    "kept gathered",
    "micro-batches",
    "reduced in the end",
    "offloaded",
)
"""Those of the script that share the batch."""


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("sharded")
    run_ranks(request.param, SCRIPT, str(folder))
    return [pickle.loads((folder / f"rank{rank}.pkl").read_bytes()) for rank in range(request.param)]


def whole(dtype: torch.dtype) -> list[Snapshot]:
    """The same training in one process, on the joined batch."""
    model = parallel.chain().to(dtype)
    optimizer = parallel.sgd(model)
    with vg.watch(model, optimizer, every=1, histograms=lambda step: True) as monitor:
        for _ in range(STEPS):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X.to(dtype)), Y).backward()
            optimizer.step()
    return list(monitor.history)


def assert_same(found: Stats | None, wanted: Stats | None, rel: float) -> None:
    assert (found is None) == (wanted is None)
    if found is None or wanted is None:
        return
    assert (found.count, found.zeros, found.nonfinite) == (wanted.count, wanted.zeros, wanted.nonfinite)
    for field in ("mean", "std", "min", "max"):
        assert getattr(found, field) == pytest.approx(getattr(wanted, field), rel=rel, abs=rel * wanted.rms)
    assert found.histogram is not None
    assert wanted.histogram is not None
    moved = np.abs(found.histogram.dense() - wanted.histogram.dense()).sum() / 2
    assert moved <= (1 if rel > 1e-7 else 0)  # a float32 may round across the edge of its bucket


@pytest.mark.parametrize("name", SHARDINGS)
def test_a_snapshot_is_that_of_the_whole_model_on_the_joined_batch(name: str, ranks: list[dict[str, Any]]) -> None:
    single = name == "each layer, float32"
    rel = 1e-5 if single else 1e-12
    wanted = whole(torch.float32 if single else torch.float64)
    for seen in ranks:
        assert len(seen[name]["snapshots"]) == STEPS
        for mine, oracle in zip(seen[name]["snapshots"], wanted, strict=True):
            for layer, other in zip(mine.layers, oracle.layers, strict=True):
                keys = [(x.number, x.name, x.call, x.kind, x.size, x.trainable) for x in (layer, other)]
                assert keys[0] == keys[1]
                for quantity in QUANTITIES:
                    assert_same(getattr(layer, quantity), getattr(other, quantity), rel)
                assert layer.update_rms == pytest.approx(other.update_rms, rel=rel)
                assert layer.update_ratio == pytest.approx(other.update_ratio, rel=rel)
                assert math.hypot(*layer.rank_rms) / math.sqrt(len(ranks)) == pytest.approx(
                    layer.output_gradient.rms, rel=rel
                )


def test_under_tensor_parallel_the_parameters_alone_are_seen(ranks: list[dict[str, Any]]) -> None:
    wanted = whole(torch.float64)
    for rank, seen in enumerate(ranks):
        for mine, oracle in zip(seen["tensor parallel"]["snapshots"], wanted, strict=True):
            for layer, other in zip(mine.layers, oracle.layers, strict=True):
                for quantity in ("weight", "weight_gradient"):
                    assert_same(getattr(layer, quantity), getattr(other, quantity), 1e-12)
                assert layer.update_rms == pytest.approx(other.update_rms, rel=1e-12)
                assert all(getattr(layer, quantity) is None for quantity in ACTIVATIONS)
        warned = seen["tensor parallel"]["warnings"]
        assert [w.startswith("under tensor parallel") for w in warned] == [True] * (rank == 0)


def test_in_mixed_precision_weights_are_those_of_the_optimizer_and_outputs_those_computed(
    ranks: list[dict[str, Any]],
) -> None:
    exact = whole(torch.float32)[0]
    half = parallel.chain().bfloat16()
    highest = float(half[0](X.bfloat16()).detach().max())
    for seen in ranks:
        first = seen["half"]["snapshots"][0]
        for layer, other in zip(first.layers, exact.layers, strict=True):
            assert_same(layer.weight, other.weight, 1e-6)
            for quantity in ("output", "output_gradient", "weight_gradient"):
                rounded, full = getattr(layer, quantity), getattr(other, quantity)
                assert rounded.count == full.count  # of both micro-batches
                assert rounded.rms == pytest.approx(full.rms, rel=0.02)
        assert first.layers[0].output.max == pytest.approx(highest, rel=0.01)


@pytest.mark.parametrize("name", [*SHARDINGS, "tensor parallel", "half"])
def test_watching_changes_no_bit_of_the_weights(name: str, ranks: list[dict[str, Any]]) -> None:
    for seen in ranks:
        pairs = zip(seen[name]["watched"], seen[name]["free"], strict=True)
        assert all(torch.equal(watched, free) for watched, free in pairs)


def test_the_ranks_parts_hold_each_entry_once(ranks: list[dict[str, Any]]) -> None:
    for name in ("rows", "columns", "replicated", "partial"):
        entries = torch.cat([seen["parts"][name] for seen in ranks])
        assert sorted(entries.tolist()) == pytest.approx(range(12))
    sizes = [len(seen["parts"]["replicated"]) for seen in ranks]
    assert sizes == [12] + [0] * (len(ranks) - 1)
    assert (len(ranks[-1]["parts"]["rows"]) == 0) == (len(ranks) == 4)  # three rows


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("on_two_meshes", "this model's lie on 2 different ones"),
        ("on_a_square", "of one dimension; this model's has 2 ("),
        ("beside_data_parallel", "either DistributedDataParallel or parameters on a device mesh, not both"),
        ("outputs", "under tensor parallel output, input_gradient cannot be measured; weight_gradient can"),
        ("fsdp1", "watch() does not see layers inside FullyShardedDataParallel; shard the model by"),
    ],
)
def test_what_cannot_be_put_together_is_refused(how: str, words: str, ranks: list[dict[str, Any]]) -> None:
    assert all(words in seen["refused"][how] for seen in ranks)


def test_a_block_of_layers_in_shards_is_seen(ranks: list[dict[str, Any]]) -> None:
    """All ranks have the same batch, which joined counts as often as there are ranks."""
    (wanted,) = sharded.blocks(lambda model: model)
    (found,) = ranks[0]["blocks"]
    assert [layer.name for layer in found.layers] == [layer.name for layer in wanted.layers] == ["0", "1", "2"]
    for layer, other in zip(found.layers, wanted.layers, strict=True):
        for quantity, times in (("output", 1), ("output_gradient", len(ranks))):
            mine, oracle = getattr(layer, quantity), getattr(other, quantity)
            assert mine.count == oracle.count * len(ranks)
            assert mine.rms * times == pytest.approx(oracle.rms, rel=1e-12)


def test_a_shard_alone_is_not_shown_as_the_weight(ranks: list[dict[str, Any]]) -> None:
    assert all(seen["after_the_group"] == [0] for seen in ranks)


# --- without any process --------------------------------------------------------------------------------------------


def shard(count: int, update: float | None) -> Snapshot:
    part = Stats(count, 0, 0, 1.0, 0.0, 1.0, 1.0)
    return Snapshot(0, (LayerSnapshot(1, "fc", "Linear", "2x2", weight=part, weight_gradient=part, update_rms=update),))


def test_the_update_of_shards_counts_by_their_size() -> None:
    joined = merged([shard(3, 1e-40), shard(1, 3e-40), shard(0, 0.0)], {"fc"}).layers[0]
    assert joined.weight is not None
    assert joined.weight.count == 4
    assert joined.update_rms == pytest.approx(math.sqrt(3) * 1e-40)
    assert merged([shard(3, None), shard(1, None)], {"fc"}).layers[0].update_rms is None


def test_what_is_not_in_shards_is_taken_from_rank_0() -> None:
    joined = merged([shard(4, 1.0), shard(4, 1.0)]).layers[0]
    assert joined == replace(shard(4, 1.0).layers[0], number=1)

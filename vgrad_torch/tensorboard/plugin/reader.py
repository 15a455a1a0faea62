"""Reads the runs from TensorBoard's data server: the list of series, and each one as a `Flow`, which is cached."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from tensorboard import errors
from tensorboard.data import provider

from vgrad_torch.tensorboard.plugin import flow
from vgrad_torch.tensorboard.plugin.time_map import TimeMap, time_map
from vgrad_torch.tensorboard.summary import decode_text
from vgrad_torch.tensorboard.tags import (
    FIRST_NONFINITE,
    PLUGIN_NAME,
    THEORY,
    TIME,
    VERDICT,
    Axes,
    decode_axes,
    time_tag,
)
from vgrad_torch.tensorboard.time_profiles import decode_layout, decode_profile

NOTES = (VERDICT, FIRST_NONFINITE)
"""Tags of the texts that are shown below a run's name."""

PREVIEW = 200
"""Samples of a preview; a run with fewer is complete at once."""

MESSAGE = 200 << 20
"""Largest number of bytes read at once; TensorBoard allows 256 MiB for a message from its data server."""

PROFILE = 1500
"""A time profile takes fewer bytes than this."""

_CACHE_SIZE = 32  # number of flows; a flow of 200 layers and 10,000 steps takes 13 MB


class Refused(errors.PublicError):  # type: ignore[misc]
    """The request cannot be answered; the message is one sentence."""

    http_code = 400


class Query(NamedTuple):
    """What a request asks for: its context, experiment, run and tag."""

    context: Any
    experiment: str
    run: str = ""
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """One tag of one run. `stamp` changes when data are added; `problem` says why it cannot be read, or is empty."""

    run: str
    tag: str
    axes: Axes
    stamp: str
    problem: str = ""


class Reader:
    """Reads through TensorBoard's data provider, which keeps `limit` samples of a tag (0: all)."""

    def __init__(self, data_provider: Any, limit: int | None) -> None:
        self.limit = limit
        self._data = data_provider
        self._reading = threading.Lock()  # one large run in memory at a time
        self._cache: dict[Any, tuple[str, flow.Flow]] = {}

    def series(self, query: Query) -> list[Series]:
        """All series but those of the theory and of the time profiles."""
        return [series for series in self._list(query) if not series.tag.startswith((THEORY, TIME))]

    def timed(self, query: Query) -> dict[str, set[str]]:
        """The layers that have a time profile, by run."""
        listed = self._listed(query._replace(tag=""))
        return {
            run: {tag.removeprefix(f"{TIME}/") for tag in tags if tag.startswith(TIME)} for run, tags in listed.items()
        }

    def time(self, query: Query, layer: str) -> TimeMap:
        """The gradient through time of one layer of the query's run."""
        query = query._replace(tag=time_tag(layer))
        listed = self._listed(query).get(query.run, {}).get(query.tag) if query.run else None
        if listed is None:
            raise errors.NotFoundError("there is no such run, or this layer has no time profile")
        try:
            layout = decode_layout(listed.plugin_content)
            tensors = self._tensors(query, MESSAGE // PROFILE)
            return time_map([(step, decode_profile(tensor, layout)) for step, tensor in tensors])
        except ValueError as error:
            raise Refused(f"the gradient through time of {layer} cannot be shown: {error}") from error

    def read(self, query: Query, *, preview: bool = False) -> tuple[flow.Flow, bool]:
        """A series' flow, and whether it has all samples; a `preview` may have a few only."""
        series = next((s for s in self._list(query) if (s.run, s.tag) == query[2:]), None)
        if series is None:
            raise errors.NotFoundError("there is no such run, or it holds no such tag")
        cached = self._cached(query, series, preview)
        if cached is None:
            with self._reading:  # two requests for the same series read it once
                cached = self._cached(query, series, preview) or self._load(query, series, preview)
                self._store(query, series, *cached)
        return cached

    def _cached(self, query: Query, series: Series, preview: bool) -> tuple[flow.Flow, bool] | None:
        for complete in (True, False) if preview else (True,):
            stamp, cached = self._cache.get((query[1:], complete), ("", None))
            if cached is not None and stamp == series.stamp:
                return cached, complete
        return None

    def _store(self, query: Query, series: Series, loaded: flow.Flow, complete: bool) -> None:
        for outdated in (complete, False):
            self._cache.pop((query[1:], outdated), None)
        self._cache[query[1:], complete] = series.stamp, loaded
        while len(self._cache) > _CACHE_SIZE:
            del self._cache[next(iter(self._cache))]

    def theory(self, query: Query, layers: list[str], step: int) -> dict[str, flow.Array]:
        """The theory's values for exactly these layers at the latest step at or before `step`; {} if there are none."""
        for series in self._list(query._replace(tag="")):
            if series.tag.startswith(THEORY) and sorted(series.axes.layers) == sorted(layers):
                table = flow.stack(series.axes, self._tensors(query._replace(tag=series.tag), PREVIEW))
                places = [table.layers.index(layer) for layer in layers]
                lines = {name: line[places] for name, line in flow.at_step(table, table.index(step)).items()}
                return {name: line for name, line in lines.items() if not np.isnan(line).all()}
        return {}

    def notes(self, query: Query) -> dict[str, dict[str, str]]:
        """The newest text of each tag in `NOTES`, by run, as Markdown that is not rendered."""
        data = self._data.read_tensors(
            query.context, experiment_id=query.experiment, plugin_name="text", downsample=1,
            run_tag_filter=provider.RunTagFilter(tags=NOTES),
        )  # fmt: skip
        return {
            run: {tag: decode_text(points[-1].numpy) for tag, points in tags.items() if points}
            for run, tags in data.items()
        }

    def _load(self, query: Query, series: Series, preview: bool) -> tuple[flow.Flow, bool]:
        if series.problem:
            raise Refused(series.problem)
        most = MESSAGE // (4 * len(series.axes.layers) * len(series.axes.statistics) + 64)
        try:
            table = flow.stack(series.axes, self._tensors(query, min(PREVIEW, most) if preview else most))
        except ValueError as error:
            raise Refused(f"this run cannot be shown: {error}") from error
        complete = not preview or len(table.steps) < PREVIEW
        return flow.thin(table, thinned=complete and len(table.steps) in (self.limit, most)), complete

    def _list(self, query: Query) -> list[Series]:
        """The series of the query's run and tag. An empty run or tag stands for all of them."""
        listed = self._listed(query)
        return [_series(run, tag, listed[run][tag]) for run in sorted(listed) for tag in sorted(listed[run])]

    def _listed(self, query: Query) -> Mapping[str, Mapping[str, Any]]:
        listed: Mapping[str, Mapping[str, Any]] = self._data.list_tensors(
            query.context, experiment_id=query.experiment, plugin_name=PLUGIN_NAME, run_tag_filter=_filter(query)
        )
        return listed

    def _tensors(self, query: Query, most: int) -> list[tuple[int, Any]]:
        data = self._data.read_tensors(
            query.context, experiment_id=query.experiment, plugin_name=PLUGIN_NAME, downsample=most,
            run_tag_filter=_filter(query),
        )  # fmt: skip
        return [(point.step, point.numpy) for point in data.get(query.run, {}).get(query.tag, [])]


def _filter(query: Query) -> Any:
    return provider.RunTagFilter(runs=[query.run] if query.run else None, tags=[query.tag] if query.tag else None)


def _series(run: str, tag: str, listed: Any) -> Series:
    stamp = f"{listed.max_step} {listed.max_wall_time}"
    try:
        return Series(run, tag, decode_axes(listed.plugin_content), stamp)
    except KeyError as error:
        problem = f"it lacks {error}"
    except (ValueError, TypeError) as error:
        problem = str(error)
    return Series(
        run,
        tag,
        Axes([], []),
        stamp,
        f"this run cannot be shown: its description was not written by vgrad_torch ({problem})",
    )

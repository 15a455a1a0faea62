"""The server of the Gradient Flow tab: the page's files, and the answers to its requests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tensorboard import context, errors
from tensorboard.backend import experiment_id, http_util
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from vgrad_torch.tensorboard.plugin import flow
from vgrad_torch.tensorboard.plugin.order import grouping, in_order
from vgrad_torch.tensorboard.plugin.reader import Query, Reader, Refused
from vgrad_torch.tensorboard.plugin.waterfall import waterfall_view
from vgrad_torch.tensorboard.tags import PLUGIN_NAME, layer_label
from vgrad_torch.verdict.horizons import horizon

STATIC = {
    "index.js": "text/javascript",
    "page.js": "text/javascript",
    "state.js": "text/javascript",
    "rows.js": "text/javascript",
    "charts.js": "text/javascript",
    "waterfall.js": "text/javascript",
    "time.js": "text/javascript",
    "scales.js": "text/javascript",
    "data.js": "text/javascript",
    "style.css": "text/css",
}
"""The files of the page; no other file is ever read."""


class GradientFlow(base_plugin.TBPlugin):  # type: ignore[misc]
    """The tab, which TensorBoard shows as soon as a run has a gradient_flow tag."""

    plugin_name = PLUGIN_NAME

    def __init__(self, board: Any, static: Path = Path(__file__).parent / "static") -> None:
        self._reader = Reader(board.data_provider, (board.sampling_hints or {}).get(PLUGIN_NAME))
        self._static = static

    def is_active(self) -> bool:
        """Always False: TensorBoard itself looks for tags of this plugin."""
        return False

    def frontend_metadata(self) -> Any:
        """The tab's name and the file its page starts with."""
        return base_plugin.FrontendMetadata(es_module_path="/index.js", tab_name="Gradient Flow")

    def get_plugin_apps(self) -> dict[str, Any]:
        """Route -> the application that answers it."""
        files = {f"/{name}": _app(self._file(name)) for name in STATIC}
        answers = {"/runs": self._runs, "/flow": self._flow, "/profile": self._profile, "/time": self._time}
        return {**files, **{route: _app(answer) for route, answer in answers.items()}}

    def _file(self, name: str) -> Callable[[Any], Any]:
        def answer(request: Any) -> Any:
            missing = [file for file in STATIC if not (self._static / file).is_file()]
            if missing and name == "index.js":
                return http_util.Respond(request, _incomplete_page(missing), STATIC[name])
            if name in missing:
                raise errors.NotFoundError(name)
            return http_util.Respond(request, (self._static / name).read_bytes(), STATIC[name])

        return answer

    def _runs(self, request: Any) -> Any:
        """All series with their layers or their problem, and the notes of their runs."""
        query = _query(request)
        notes, timed = self._reader.notes(query), self._reader.timed(query)
        series = []
        for s in self._reader.series(query):
            layers = in_order(s.axes).layers
            timed_layers = [layer for layer in layers if layer in timed.get(s.run, set())]
            series.append(
                {"run": s.run, "tag": s.tag, "layers": layers, **grouping(layers), "stamp": s.stamp,
                 "problem": s.problem, "notes": notes.get(s.run, {}), "timed": timed_layers}
            )  # fmt: skip
        return http_util.Respond(request, {"series": series}, "application/json")

    def _flow(self, request: Any) -> Any:
        """One quantity of one series: first step, smallest and largest values of each bucket [layers, buckets]."""
        quantity = request.args.get("quantity")
        if quantity not in flow.QUANTITIES:
            raise Refused(f"quantity must be one of {', '.join(flow.QUANTITIES)}")
        run, complete = self._reader.read(_query(request), preview="preview" in request.args)
        head = {
            "starts": run.starts.tolist(), "steps": run.profiles.steps.tolist(), "samples": run.samples,
            "thinned": run.thinned, "complete": complete,
        }  # fmt: skip
        return _binary(request, head, {"low": run.lows[quantity], "high": run.highs[quantity]})

    def _profile(self, request: Any) -> Any:
        """One step of one series: all quantities, one value a layer, those of the theory too, and the waterfall."""
        step = request.args.get("step", type=int)
        if step is None:
            raise Refused("step must be a whole number")
        query = _query(request)
        run, _ = self._reader.read(query, preview="preview" in request.args)
        shown, values = run.profile(step)
        try:
            theory, problem = self._reader.theory(query, run.profiles.layers, shown), ""
        except ValueError as error:
            theory, problem = {}, f"The line of the theory is left out: {error}."
        predicted = {f"theory.{name}": line for name, line in theory.items()}
        gradients = [values[name].tolist() for name in ("output_gradient", "input_gradient")]
        met = run.profiles.junctions[run.profiles.index(step)].tolist()
        waterfall = waterfall_view(run.profiles.layers, gradients[0], gradients[1], run.profiles.graph, met)
        return _binary(request, {"step": shown, "problem": problem, "waterfall": waterfall}, {**values, **predicted})

    def _time(self, request: Any) -> Any:
        """The gradient through time of one layer, and for each column the sentence about its horizon."""
        layer = request.args.get("layer", "")
        shown = self._reader.time(_query(request), layer)
        words = [horizon(layer_label(layer), profile) for profile in shown.profiles]
        head = {
            "layer": layer, "name": layer_label(layer), "starts": shown.starts.tolist(), "steps": shown.steps.tolist(),
            "samples": shown.samples, "back": shown.back.tolist(), "words": words,
            "lasts": [profile.last for profile in shown.profiles],
            "lengths": [profile.steps for profile in shown.profiles],
            "tenths": [profile.tenth for profile in shown.profiles],
            "hundredths": [profile.hundredth for profile in shown.profiles],
        }  # fmt: skip
        return _binary(request, head, {"values": shown.values})


def _app(answer: Callable[[Any], Any]) -> Any:
    """A WSGI application. An error of the request or the data is answered with one line and the error's status."""

    @wrappers.Request.application
    def application(request: Any) -> Any:
        try:
            return answer(request)
        except errors.PublicError as error:
            return http_util.Respond(request, str(error), "text/plain", code=error.http_code)

    return application


def _query(request: Any) -> Query:
    experiment = request.environ.get(experiment_id.WSGI_ENVIRON_KEY, "")
    return Query(
        context.from_environ(request.environ), experiment, request.args.get("run", ""), request.args.get("tag", "")
    )


def _binary(request: Any, head: Mapping[str, Any], arrays: Mapping[str, flow.Array]) -> Any:
    """A binary response, little-endian: length of the header, the JSON header padded to 4 bytes, the float32 arrays."""
    shapes = [[name, *array.shape] for name, array in arrays.items()]
    text = json.dumps({**head, "arrays": shapes}).encode()
    text += b" " * (-len(text) % 4)
    content = [len(text).to_bytes(4, "little"), text, *(array.astype("<f4").tobytes() for array in arrays.values())]
    return http_util.Respond(request, b"".join(content), "application/octet-stream")


def _incomplete_page(missing: list[str]) -> str:
    message = f"The Gradient Flow tab is incomplete: {', '.join(missing)} is missing. Install vgrad-torch again."
    return f"export function render() {{ document.body.textContent = {json.dumps(message)}; }}"

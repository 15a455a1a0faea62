"""Figures of snapshots: each function returns a matplotlib `Figure` and neither shows nor saves it.

A function for several runs takes them as {name: run} and draws them on equal axes.
"""

from vgrad_torch.report.figures.data import circles
from vgrad_torch.report.figures.depth import depth_profile, waterfalls
from vgrad_torch.report.figures.distributions import ridges, values
from vgrad_torch.report.figures.maps import flow_map
from vgrad_torch.report.figures.steps import gradients, losses, weights
from vgrad_torch.report.figures.times import time_map

__all__ = [
    "circles",
    "depth_profile",
    "flow_map",
    "gradients",
    "losses",
    "ridges",
    "time_map",
    "values",
    "waterfalls",
    "weights",
]

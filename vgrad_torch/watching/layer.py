"""A watched layer: where its weights are, and how large it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from vgrad_torch.distributed import shards


@dataclass(frozen=True, slots=True)
class Layer:
    """A module, or one bare parameter of a module that computes with its parameters itself.

    Attributes:
        module: the module that owns the weights.
        matrix: the name of the bare parameter in `module`; None if the layer is the whole module.
        caller: the module whose forward pass uses the bare parameter; `module` itself if None.
    """

    module: nn.Module
    matrix: str | None = None
    caller: nn.Module | None = None

    @property
    def kind(self) -> str:
        """The module's type, such as `Linear`; `Parameter` for a bare parameter."""
        return shards.kind(self.module) if self.matrix is None else "Parameter"

    def weights(self) -> list[nn.Parameter]:
        """The weight matrices of the module itself (a recurrent layer has several); if it has none, its vectors.

        For a parametrized weight (weight_norm, spectral_norm), the parameters that are trained instead of it.
        """
        if self.matrix is not None:
            return [cast(nn.Parameter, getattr(self.module, self.matrix))]
        own = own_parameters(self.module)
        return [p for p in own if p.dim() >= 2] or own

    def trainable(self) -> bool:
        """Whether any weight requires a gradient."""
        return any(weight.requires_grad for weight in self.weights())

    def size(self, flow: Flow) -> str:
        """Inputs x outputs, such as `784x512`; of a convolution channels and kernel, such as `64x128 3x3`.

        The numbers of inputs and outputs are those of the tensors that went through the layer, because the shapes of
        weights follow no rule. Empty for a layer without a matrix.
        """
        if isinstance(self.module, nn.modules.conv._ConvNd):
            channels = f"{self.module.in_channels}x{self.module.out_channels}"
            return f"{channels} {'x'.join(map(str, self.module.kernel_size))}"
        weights = [w for w in self.weights() if w.dim() >= 2]
        if not weights:
            return ""
        if isinstance(self.module, nn.MultiheadAttention):  # cross-attention uses the matrix in parts
            return f"{weights[0].shape[1]}x{weights[0].shape[0]}"
        fans = [(math.prod(w.shape[1:]), len(w)) for w in weights]
        fan_in, fan_out = next((fan for fan in fans if fan[0] > 1), fans[0])  # weight_norm's magnitudes come first
        if all(sum(n > 1 for n in w.shape) > 2 for w in weights) or flow.outputs is None:
            return f"{fan_in}x{fan_out}"
        inputs = fan_in * fan_out // flow.outputs if flow.inputs is None else flow.inputs
        return f"{inputs}x{flow.outputs}"


@dataclass(slots=True)
class Flow:
    """The number of features that go into a layer and come out of it: the last dimension of its tensors."""

    inputs: int | None = None
    outputs: int | None = None

    def see(self, x: Tensor | None, output: Tensor | None) -> None:
        """Note an input and an output; a tensor without dimensions has no features."""
        self.inputs = x.shape[-1] if x is not None and x.dim() else self.inputs
        self.outputs = output.shape[-1] if output is not None and output.dim() else self.outputs


def own_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of the module itself and of its parametrizations, but not of its submodules."""
    own = list(module.parameters(recurse=False))
    if is_parametrized(module):
        for listed in cast(nn.ModuleDict, module.parametrizations).values():
            own += listed.parameters(recurse=False)
    return own

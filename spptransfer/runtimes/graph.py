"""A network as an ONNX graph; a backbone's trunk as one that the runtimes besides torch compile.

Torch's exporter follows the network on noise, in this process and without a file. What it wrote
down of a trunk is trusted where the runtime agrees with torch on images of two sizes.
"""

from __future__ import annotations

import io
import math
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from spptransfer.backbones import Backbone
from spptransfer.errors import ConfigError
from spptransfer.runtimes.devices import TorchNetwork, one_thread, place

# Relative l2 distance from torch's maps up to which a runtime is trusted.
TOLERANCES = {"float32": 1e-3, "bfloat16": 3e-2}
# Where torch's own bfloat16 is further from float32 than that: a multiple of its distance.
_AS_GOOD = 1.5
# Runtimes differ in what they make of numbers that are not finite. Where none on noise is above
# this, none on any image overflows.
_LARGEST = 1e25
_PROBE_SIDE = 64
# What runtimes say where memory does not suffice; each has exceptions of its own.
_OUT_OF_MEMORY = ("bad_alloc", "failed to allocate", "could not allocate", "not enough memory")
# The names of what makes a tensor's numbers Python's.
_LEAVING = (
    *("__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__", "__array__"),
    *("item", "tolist", "numpy", "equal", "allclose", "is_nonzero"),
)
_OPSET = 17
PIXELS = "pixels"
_exporting = threading.Lock()

# Names of the axes that can be of any length, by input and output.
FreeAxes = Mapping[str, Mapping[int, str]]
# From N x H x W x 3 bytes to the outputs of a graph, in their order.
Run = Callable[[npt.NDArray[np.uint8]], Sequence[npt.NDArray[np.float32]]]


class CompiledNetwork:
    """A trunk that a runtime compiles as a graph, once for each set of layers asked for.

    The backbone is in float32 and on the CPU; `compile` makes a graph ready for several threads.
    What the runtime lacks, or computes in another way than torch, is a `ConfigError`.
    """

    def __init__(
        self,
        runtime: str,
        compile: Callable[[Graph], Run],
        backbone: Backbone,
        layers: Sequence[str],
        precision: str,
    ) -> None:
        self._runtime, self._backbone, self._precision = runtime, backbone, precision
        self._compile = compile
        self._compiled: dict[tuple[str, ...], tuple[Mapping[str, str], Run]] = {}
        self._lock = threading.Lock()
        self._compiled_for(tuple(layers))

    def maps(self, pixels: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        """Compute the maps that some layers are made of, in one pass."""
        return _run(*self._compiled_for(tuple(layers)), pixels)

    def _compiled_for(self, layers: tuple[str, ...]) -> tuple[Mapping[str, str], Run]:
        with self._lock:
            if layers not in self._compiled:
                self._compiled[layers] = self._checked(layers)
            return self._compiled[layers]

    def _checked(self, layers: Sequence[str]) -> tuple[Mapping[str, str], Run]:
        """Compile the graph of some layers, and compare it with torch on noisy images."""
        if not getattr(self._backbone, "is_convolutional", True):  # an export takes many seconds
            raise self._refusal(f"is for convolutions, and '{self._backbone.info.name}' attends")
        one, several = map(torch.from_numpy, self._probes())
        trunk = Trunk(self._backbone, layers)
        names = self._outputs(trunk, one)
        free = {PIXELS: {0: "images", 1: "height", 2: "width"}}
        for output in names.values():
            free[output] = {0: "images", 2: f"{output}_rows", 3: f"{output}_columns"}
        try:
            run = self._compile(Graph(trunk, {PIXELS: several}, free))
            found = [(pixels, _run(names, run, pixels)) for pixels in (one, several)]
        except MemoryError:
            raise
        except Exception as error:  # whatever users' classes, the exporter and runtimes raise
            why = reason_of(error)
            raise self._refusal(f"cannot compute '{self._backbone.info.name}' ({why})") from error
        for pixels, maps in found:
            self._check(maps, pixels)
        return names, run

    def _probes(self) -> list[npt.NDArray[np.uint8]]:
        """Draw noise of two sizes, neither of them a round number."""
        info, drawn = self._backbone.info, np.random.default_rng(0)
        side, step = max(_PROBE_SIDE, info.min_side), info.grid
        shapes = (1, side + 3, 2 * side + 14), (2, side, side + 1)
        return [
            drawn.integers(0, 256, (n, -(-h // step) * step, -(-w // step) * step, 3), np.uint8)
            for n, h, w in shapes
        ]

    def _outputs(self, trunk: Trunk, pixels: torch.Tensor) -> dict[str, str]:
        """Name what layers put out; refuse what depends on numbers, and those that may overflow."""
        watch, name = _Watch(), self._backbone.info.name
        with one_thread(), torch.no_grad(), watch:
            found = trunk.maps(pixels)
        if watch.has_left:
            raise self._refusal(f"cannot follow '{name}', which depends on numbers inside it")
        if not watch.largest <= _LARGEST:
            raise self._refusal(
                f"is not for '{name}' with these weights, whose numbers are too large or not "
                f"finite ({watch.largest:.1g} on a noisy image)"
            )
        distinct = list(dict.fromkeys(map(id, found.values())))
        return {layer: f"maps{distinct.index(id(maps))}" for layer, maps in found.items()}

    def _check(self, found: Mapping[str, torch.Tensor], pixels: torch.Tensor) -> None:
        """Compare maps with torch's."""
        with one_thread(), torch.inference_mode():
            exact = TorchNetwork(self._backbone).maps(pixels, list(found))
            error, allowed = _distance(found, exact), TOLERANCES[self._precision]
            if self._precision == "bfloat16" and error > allowed:
                low = place(self._backbone, self._backbone, pixels.device, torch.bfloat16)
                rounded = TorchNetwork(low).maps(pixels, list(found))
                allowed = max(allowed, _AS_GOOD * _distance(rounded, exact))
        if not error <= allowed < math.inf:
            why = (
                f"does not agree with torch on '{self._backbone.info.name}' in {self._precision} "
                f"(relative error {error:.2g}, allowed {allowed:.2g})"
            )
            raise self._refusal(why)

    def _refusal(self, why: str) -> ConfigError:
        return ConfigError(f"runtime '{self._runtime}' {why}; use runtime 'torch'")


def reason_of(error: Exception) -> str:
    """Say in one line what an exporter or a runtime has against a network."""
    cause = error.__cause__ or error  # a module's own words, if it is one's that fails
    return (str(cause).strip() or type(cause).__name__).splitlines()[0][:200]


def _run(names: Mapping[str, str], run: Run, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    try:
        found = run(pixels.contiguous().numpy())
    except Exception as error:
        if any(words in str(error).lower() for words in _OUT_OF_MEMORY):
            raise MemoryError(str(error)) from error
        raise
    outputs = dict.fromkeys(names.values())
    values = dict(zip(outputs, map(torch.from_numpy, found), strict=True))
    return {layer: values[name] for layer, name in names.items()}


def _distance(found: Mapping[str, torch.Tensor], exact: Mapping[str, torch.Tensor]) -> float:
    """Return the largest relative l2 distance of all layers; infinite if some are not finite."""
    largest = 0.0
    for layer, expected in exact.items():
        maps = found[layer]
        if maps.shape != expected.shape or not (maps.isfinite() & expected.isfinite()).all():
            return math.inf
        length = torch.linalg.vector_norm(expected).clamp(min=1e-30)
        largest = max(largest, float(torch.linalg.vector_norm(maps.float() - expected) / length))
    return largest


class _Watch(TorchFunctionMode):
    """Find the largest absolute number that this thread's torch gives; NaN if there is one.

    And whether any number has left for Python, where a branch may depend on it.
    """

    largest, has_left = 0.0, False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        self.has_left |= getattr(func, "__name__", "") in _LEAVING
        if isinstance(found, torch.Tensor) and found.is_floating_point() and found.numel():
            here = float(found.abs().max())
            if not math.isnan(self.largest):
                self.largest = here if math.isnan(here) else max(self.largest, here)
        return found


class Trunk(nn.Module):
    """From N x H x W x 3 bytes to some layers of a backbone."""

    shift: torch.Tensor
    span: torch.Tensor

    def __init__(self, backbone: Backbone, layers: Sequence[str]) -> None:
        super().__init__()
        self.backbone, self.layers = backbone, layers
        for name, values in (("shift", backbone.info.mean), ("span", backbone.info.std)):
            numbers = torch.tensor([255.0 * value for value in values], dtype=torch.float32)
            self.register_buffer(name, numbers[:, None, None])
        self.eval()

    def maps(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the maps that the layers are made of, by layer."""
        # Bytes are turned around, since there is less of them than of numbers.
        images = (pixels.permute(0, 3, 1, 2).float() - self.shift) / self.span
        return self.backbone.maps_of(images.contiguous(), self.layers)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute each map once, since a layer may have two names."""
        return tuple({id(maps): maps for maps in self.maps(pixels).values()}.values())


class Graph:
    """A network in ONNX's operators, with its constants beside it.

    The exporter follows it on `inputs`, by name. `free` has these and then the outputs, in order.
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: Mapping[str, torch.Tensor],
        free: FreeAxes,
    ) -> None:
        self.outputs = [name for name in free if name not in inputs]
        self._model = _exported(network, inputs, free, self.outputs)
        graph, state, given = self._model.graph, network.state_dict(), len(inputs)
        for node in graph.node:
            _round_down(node)
        # Not copied where it lies as it should: the same memory serves torch.
        self.constants: dict[str, npt.NDArray[Any]] = {
            each.name: np.ascontiguousarray(state[each.name]).reshape(state[each.name].shape)
            for each in graph.input[given:]
        }
        del graph.input[given:]

    def model(self, *, embedded: bool, about: Mapping[str, str] | None = None) -> bytes:
        """Serialise the graph, its constants in it or to be handed over beside it."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        onnx.helper.set_model_props(model, dict(about or {}))
        for name, numbers in self.constants.items():
            kind = onnx.helper.np_dtype_to_tensor_dtype(numbers.dtype)
            tensor = model.graph.initializer.add(name=name, data_type=kind, dims=numbers.shape)
            if embedded:
                tensor.raw_data = numbers.tobytes()
            else:
                tensor.data_location = onnx.TensorProto.EXTERNAL
                tensor.external_data.add(key="location", value=name)
        return bytes(model.SerializeToString())


def _exported(
    network: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    free: FreeAxes,
    outputs: Sequence[str],
) -> onnx.ModelProto:
    """Have torch write down what a network does with inputs of any size, without its constants."""
    cached = torch.is_autocast_cache_enabled()
    written: Any = io.BytesIO()  # which is not among the types that torch declares
    # The exporter's state is the process's, tracing itself is this thread's alone.
    with _exporting, warnings.catch_warnings(record=True), one_thread(), torch.no_grad():
        warnings.simplefilter("ignore")  # what they say of sizes is found out by comparison
        try:
            torch.onnx.export(
                network,
                tuple(inputs.values()),
                written,
                dynamo=False,
                opset_version=_OPSET,
                export_params=False,
                do_constant_folding=False,  # would make new constants; runtimes do it themselves
                input_names=list(inputs),
                output_names=outputs,
                dynamic_axes=free,
                # What it has no operator for is left as it is: otherwise it prints the whole graph.
                operator_export_type=torch.onnx.OperatorExportTypes.ONNX_FALLTHROUGH,
            )
        finally:
            torch.set_autocast_cache_enabled(cached)  # left off where the exporter fails
    model = onnx.load_model_from_string(written.getvalue())
    if left := [node.op_type for node in model.graph.node if node.domain]:
        raise NotImplementedError(f"ONNX has no operator for its {left[0]}")
    return model


def _round_down(node: onnx.NodeProto) -> None:
    """Have a pooling that rounds up round down, with so much more padding: the same windows.

    Runtimes differ in how they round up, above all where a map is smaller than a window.
    """
    how = {attribute.name: attribute for attribute in node.attribute}
    if "ceil_mode" not in how or not how["ceil_mode"].i:
        return
    kernel, pads = how["kernel_shape"].ints, how["pads"].ints
    sides, is_mean = len(kernel), node.op_type == "AveragePool"
    after = [p + s - 1 for p, s in zip(pads[sides:], how["strides"].ints, strict=True)]
    # Else a window could lie in the padding alone, or a mean count what is no padding of torch's.
    if any(a >= k for a, k in zip(after, kernel, strict=True)) or (is_mean and any(pads)):
        raise NotImplementedError(f"{node.op_type} rounds up in a way that runtimes differ in")
    pads[sides:], how["ceil_mode"].i = after, 0
    if is_mean:
        how["count_include_pad"].i = 0

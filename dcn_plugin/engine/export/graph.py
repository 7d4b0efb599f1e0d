"""for_export(): a copy of a defective network that every converter takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from dcn_plugin.engine.capture import capture
from dcn_plugin.engine.compaction import expected_size
from dcn_plugin.engine.export.passes import contiguous, factor_of, mask_nodes, move_masks, use_functions
from dcn_plugin.errors import MaskLostError, NotDefectiveError
from dcn_plugin.support.model_state import copy_of
from dcn_plugin.surgery import is_defective, masks_of
from dcn_plugin.surgery.wrappers import network_in

__all__ = ["ExportModel", "for_export", "size_for_export"]


class ExportModel(nn.Module):
    """What :func:`for_export` makes.

    Args:
        network: images (N, C, H, W) -> what the original returns; with masked values a tuple of that and of them.
        input_size: (C, H, W) of the images.
        dead: name of a site -> bool, True where a neuron is defective, in the shape of one activation; in the order in
            which the sites run.
        outputs: how many tensors the original returns.
    """

    def __init__(
        self, network: fx.GraphModule, input_size: tuple[int, int, int], dead: dict[str, Tensor], outputs: int
    ) -> None:
        super().__init__()
        self.network, self.input_size, self.dead, self.outputs = network, input_size, dead, outputs
        self.eval()

    def forward(self, images: Tensor) -> Any:
        """Run the network."""
        return self.network(images)

    def example_images(self, batch: int = 1) -> Tensor:
        """Images (N, C, H, W) to trace or to check with, uniform in [0, 1], the same at every call."""
        generator = torch.Generator().manual_seed(0)
        dtype = next((t.dtype for t in self.network.buffers() if t.is_floating_point()), torch.float32)
        return torch.rand(batch, *self.input_size, generator=generator, dtype=torch.float32).to(dtype)

    def leaks(self, outputs: Sequence[Any]) -> dict[str, int]:
        """Count the defective neurons that are not exactly zero.

        Args:
            outputs: all outputs, tensors or arrays (N, ...), of any tool's form of a network that was made with
                ``show_masked=True``.

        Returns:
            Name of a site -> their number; {} if all are zero.

        Raises:
            MaskLostError: there are more or fewer values than sites, or one has another shape than its mask.
        """
        values = outputs[self.outputs :]
        if len(values) != len(self.dead):
            raise MaskLostError("Not every site shows its values.", len(values), f"{len(self.dead)} values, one a site")
        counts = {}
        for (name, dead), shown in zip(self.dead.items(), values, strict=True):
            tensor = torch.as_tensor(shown)
            if tensor.shape[1:] != dead.shape:
                raise MaskLostError(
                    f"The values of {name} have another shape than its mask.",
                    tuple(tensor.shape),
                    f"(batch, {', '.join(map(str, dead.shape))})",
                )
            if count := int((tensor[:, dead] != 0).sum()):
                counts[name] = count
        return counts


def for_export(
    model: nn.Module, *, input_size: tuple[int, int, int] | None = None, show_masked: bool = False
) -> ExportModel:
    """Prepare a defective network for a converter, a runtime or a quantiser.

    The copy computes what the network computes in evaluation mode. Its masks are constants of the dtype of what they
    multiply, so that no tool is left with a conversion from bool; batch norms are folded into convolutions; and a mask
    stands behind the ReLU that follows it, so that a runtime runs convolution and ReLU as one. Masked neurons are
    exactly zero there, as they are in the network behind its ReLU.

    Args:
        model: defective, images (N, C, H, W) -> a tensor or a tuple of tensors; not changed. Wrap it in
            :class:`dcn_plugin.Normalized` first if images in [0, 1] shall be taken.
        input_size: (C, H, W); needed for a network of :class:`dcn_plugin.DefectiveConv2d` layers.
        show_masked: return a flat tuple of the network's outputs and of the masked values of every site, to count
            masked neurons in any tool: see :meth:`ExportModel.leaks`.

    Returns:
        The copy, on the CPU, in evaluation mode, for any batch size.

    Raises:
        NotDefectiveError: the model has no masks.
        MaskLostError: a mask does not act in the graph of the model.
        InputSizeError: ``input_size`` is needed, or not that of the model.
        TraceError: torch.export cannot follow the model, or its graph does not hold for every batch size.
        CompactError: its outputs are neither a tensor nor a tuple of tensors.

    Example:
        >>> exported = dcn.for_export(net)
        >>> torch.allclose(exported(images), net.eval()(images), atol=1e-4)
        True
    """
    size = size_for_export(model, input_size)
    frozen = copy_of(model).cpu().eval().requires_grad_(False)
    # Autograd refuses tensors that were made under inference mode, where the caller may be.
    with torch.inference_mode(False), torch.no_grad():
        graph = capture(frozen, size)
        dead = _name_sites(graph, frozen)
        move_masks(graph)
        contiguous(graph)
        outputs = _show(graph, dead if show_masked else {})
        use_functions(graph)
        return ExportModel(graph, size, dead, outputs)


def size_for_export(model: nn.Module, input_size: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """The (C, H, W) of the images of a defective network.

    Raises:
        NotDefectiveError: it has no masks.
        InputSizeError: ``input_size`` is needed, or not that of the model.
    """
    if not isinstance(model, nn.Module) or not is_defective(model):
        raise NotDefectiveError(
            "There are no masks to export.",
            type(model).__name__,
            fix="defectify() the network, or export it with the tool itself",
        )
    return expected_size(model, input_size)


def _name_sites(graph: fx.GraphModule, model: nn.Module) -> dict[str, Tensor]:
    """Note at every product with a mask which site it is, and give the defective neurons of each.

    Raises:
        MaskLostError: a mask of the model acts nowhere.
    """
    masks = {path.removesuffix(".drop"): mask.mask[0] for path, mask in masks_of(network_in(model)).items()}
    missing, dead = dict(masks), {}
    for node in mask_nodes(graph.graph):
        factor = factor_of(node)
        assert factor is not None
        kept = factor.meta["val"][0] != 0
        # Two masks may have the same bits, and a module with a mask may run twice.
        known = [name for names in (missing, masks) for name, mask in names.items() if torch.equal(mask, kept)]
        if known:
            name = known[0]
            missing.pop(name, None)
            title = name if name not in dead else f"{name}, again at {node.name}"
            node.meta["site"], dead[title] = title, ~kept
    if missing:
        raise MaskLostError(
            f"{len(missing)} of {len(masks)} masks act nowhere in the graph of the network.",
            ", ".join(list(missing)[:3]),
            "every mask multiplies what its layer puts out",
            "verify() says more about them",
        )
    return dead


def _show(graph: fx.GraphModule, sites: dict[str, Tensor]) -> int:
    """Make the masked values of sites outputs behind the network's own; says how many its own are."""
    values = {node.meta["site"]: node for node in graph.graph.nodes if node.meta.get("site")}
    output = graph.graph.output_node()
    (value,) = output.args
    own = tuple(value) if isinstance(value, tuple | list) else (value,)
    if sites:
        output.args = ((*own, *(values[name] for name in sites)),)
        graph.recompile()
    return len(own)

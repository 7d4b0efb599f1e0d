"""A source that was trained on a target's answers, and what the answers cost."""

from __future__ import annotations

from torch import Tensor, nn

from dcn_plugin.errors import SpecError
from dcn_plugin.support.arguments import check_count

__all__ = ["DistilledSource", "target_queries"]


class DistilledSource(nn.Module):
    """A model that was trained on what a target answered, with the number of images that the target was asked about.

    It computes what the model computes. Protocols write the number into their records: an attack from such a source is
    one with a query budget, however few queries the source itself takes.
    :func:`dcn_plugin.training.distill_source` makes one.

    Args:
        model: images in [0, 1] -> logits.
        target_queries: images that the target was asked about, >= 1.

    Shape:
        - Input: (N, C, H, W) in [0, 1]
        - Output: logits (N, classes)

    Raises:
        SpecError: no model, or no number.

    Example:
        >>> source = DistilledSource(plain, target_queries=600)
        >>> source(images).shape
        torch.Size([8, 10])
    """

    def __init__(self, model: nn.Module, *, target_queries: int) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise SpecError("A distilled source needs a model.", type(model).__name__, "an nn.Module")
        self.target_queries = check_count(target_queries, "number of the target's answers")
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the model's logits (N, classes)."""
        logits: Tensor = self.model(images)
        return logits

    def extra_repr(self) -> str:
        """Show what it cost: another budget is another source."""
        return f"target_queries={self.target_queries}"


def target_queries(source: nn.Module) -> int | None:
    """How many answers of targets a source was trained on, those of all members of an ensemble; None: on none."""
    counts = [module.target_queries for module in source.modules() if isinstance(module, DistilledSource)]
    return sum(counts) if counts else None

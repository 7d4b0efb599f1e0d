"""Networks: the paper's, built from timm's blocks."""

from dcn_plugin.models.densenet import cifar_densenet
from dcn_plugin.models.mask_expectation import MaskExpectation
from dcn_plugin.models.paper_nets import (
    densenet121_cifar,
    resnet18_cifar,
    resnet50_cifar,
    senet18_cifar,
    vgg19_cifar,
    wrn32_4_cifar,
)
from dcn_plugin.models.paper_variants import VARIANTS, Variant, build_variant, paper_variant
from dcn_plugin.models.regularizers import Regularizer, regularize
from dcn_plugin.models.resnet import cifar_resnet
from dcn_plugin.models.senet import cifar_senet
from dcn_plugin.models.vgg import cifar_vgg
from dcn_plugin.support.old_paths import keep_old_paths

__all__ = [
    "VARIANTS",
    "MaskExpectation",
    "Regularizer",
    "Variant",
    "build_variant",
    "cifar_densenet",
    "cifar_resnet",
    "cifar_senet",
    "cifar_vgg",
    "densenet121_cifar",
    "paper_variant",
    "regularize",
    "resnet18_cifar",
    "resnet50_cifar",
    "senet18_cifar",
    "vgg19_cifar",
    "wrn32_4_cifar",
]

_OLD = {f"cifar_{name}": f"dcn_plugin.models.{name}" for name in ("resnet", "densenet", "senet", "vgg")}
keep_old_paths(__name__, **_OLD)

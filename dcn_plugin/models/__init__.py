"""Networks: the paper's, built from timm's blocks."""

from dcn_plugin.models.cifar_resnet import cifar_resnet, resnet18_cifar

__all__ = ["cifar_resnet", "resnet18_cifar"]

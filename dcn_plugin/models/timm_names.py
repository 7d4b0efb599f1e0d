"""Which models of timm's registry have a defective version, and which cannot have one.

:data:`FAMILIES` are those that tests build. :mod:`dcn_plugin.models.timm_table` has all CNNs of a release of timm,
written from the record of a sweep over it (``recipes/coverage``), and the reason why each other model has no name.
"""

from __future__ import annotations

from timm.models import is_model

from dcn_plugin.models.timm_table import NAMED

__all__ = ["BASES", "FAMILIES", "REFUSED"]

FAMILIES: dict[str, tuple[str, ...]] = {
    "ResNet": (
        *("resnet10t", "resnet14t", "resnet18", "resnet18d", "resnet26", "resnet26d", "resnet34", "resnet34d"),
        *("resnet50", "resnet50d", "resnet50_gn", "resnet101", "resnet101d", "resnet152", "resnet152d"),
        *("resnetaa50", "resnetblur50"),
    ),
    "ResNet-RS": ("resnetrs50", "resnetrs101"),
    "ECA-ResNet": ("ecaresnet26t", "ecaresnet50d", "ecaresnet50t", "ecaresnet101d", "ecaresnetlight"),
    "ResNeXt": ("resnext50_32x4d", "resnext50d_32x4d", "resnext101_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    "Wide-ResNet": ("wide_resnet50_2", "wide_resnet101_2"),
    "SE-ResNet": ("legacy_seresnet18", "legacy_seresnet34", "legacy_seresnet50", "seresnet50", "seresnet152d"),
    "SE-ResNeXt": (
        *("seresnext26d_32x4d", "seresnext26t_32x4d", "seresnext50_32x4d", "seresnext101_32x4d"),
        *("legacy_seresnext26_32x4d", "legacy_seresnext50_32x4d"),
    ),
    "ResNetV2": (
        *("resnetv2_18", "resnetv2_34", "resnetv2_50", "resnetv2_50d_gn", "resnetv2_50x1_bit", "resnetv2_101"),
    ),
    "DenseNet": ("densenet121", "densenet161", "densenet169", "densenet201", "densenetblur121d"),
    "VGG": ("vgg11", "vgg13", "vgg16", "vgg19"),
    "VGG-bn": ("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"),
    "RegNetX": ("regnetx_002", "regnetx_004", "regnetx_006", "regnetx_008", "regnetx_016", "regnetx_032"),
    "RegNetY": ("regnety_002", "regnety_004", "regnety_006", "regnety_008", "regnety_016", "regnety_032"),
    "RegNetZ": ("regnetz_005", "regnetz_b16", "regnetz_c16", "regnetz_d8"),
    "EfficientNet": (
        *("efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "efficientnet_b4"),
        *("efficientnet_es", "efficientnet_em", "efficientnet_lite0"),
        *("tf_efficientnet_b0", "tf_efficientnet_b1", "tf_efficientnet_b2", "tf_efficientnet_b3"),
        *("tf_efficientnet_lite0", "tf_efficientnet_lite1"),
    ),
    "EfficientNetV2": (
        *("tf_efficientnetv2_b0", "tf_efficientnetv2_b1", "tf_efficientnetv2_b3", "tf_efficientnetv2_s"),
        *("efficientnetv2_rw_t", "efficientnetv2_rw_s", "efficientnetv2_s", "efficientnetv2_m"),
    ),
    "MixNet": ("mixnet_s", "mixnet_m", "mixnet_l"),
    "MNASNet": ("mnasnet_small", "mnasnet_100", "semnasnet_075", "semnasnet_100", "spnasnet_100"),
    "FBNet": ("fbnetc_100", "fbnetv3_b"),
    "LCNet": ("lcnet_050", "lcnet_100"),
    "TinyNet": ("tinynet_e", "tinynet_d", "tinynet_c", "tinynet_b", "tinynet_a"),
    "HardCoRe-NAS": ("hardcorenas_a", "hardcorenas_b", "hardcorenas_c", "hardcorenas_f"),
    "RexNet": ("rexnet_100", "rexnet_130", "rexnet_150", "rexnet_200"),
    "MobileNetV1": ("mobilenetv1_100",),
    "MobileNetV2": ("mobilenetv2_050", "mobilenetv2_100", "mobilenetv2_110d", "mobilenetv2_120d", "mobilenetv2_140"),
    "MobileNetV3": (
        *("mobilenetv3_small_050", "mobilenetv3_small_075", "mobilenetv3_small_100", "mobilenetv3_large_100"),
        *("tf_mobilenetv3_small_100", "tf_mobilenetv3_large_100"),
    ),
    "MobileNetV4": (
        *("mobilenetv4_conv_small", "mobilenetv4_conv_medium", "mobilenetv4_conv_blur_medium"),
        *("mobilenetv4_conv_large",),
    ),
    "Inception": ("inception_v3", "inception_v4", "inception_resnet_v2"),
    "Xception": ("legacy_xception", "xception41", "xception41p", "xception65"),
    "DLA": ("dla46_c", "dla34", "dla60", "dla60x", "dla102"),
    "CSPNet": ("cs3darknet_m", "cs3darknet_l", "cs3darknet_focus_m", "cspresnet50", "cspresnext50", "cspdarknet53"),
    "DarkNet": ("darknet53",),
    "RepVGG": ("repvgg_a0", "repvgg_a2", "repvgg_b0", "repvgg_b1", "repvgg_b1g4"),
    "MobileOne": ("mobileone_s1", "mobileone_s0"),
    "GENet": ("gernet_s", "gernet_m", "gernet_l"),
    "GhostNet": ("ghostnet_100", "ghostnetv2_100"),
    "RepGhostNet": ("repghostnet_050", "repghostnet_100"),
    "DPN": ("dpn68", "dpn68b", "dpn92"),
    "Res2Net": ("res2net50_26w_4s", "res2net50_14w_8s", "res2net101_26w_4s", "res2next50"),
    "ResNeSt": ("resnest14d", "resnest26d", "resnest50d"),
    "SKNet": ("skresnet18", "skresnet34", "skresnext50_32x4d"),
    "SelecSLS": ("selecsls42b", "selecsls60", "selecsls60b"),
    "VovNet": ("ese_vovnet19b_dw", "ese_vovnet39b"),
    "TResNet": ("tresnet_m",),
    "HGNet": ("hgnetv2_b0", "hgnetv2_b1", "hgnet_tiny"),
    "NFNet": ("nf_regnet_b1", "nf_resnet50", "eca_nfnet_l0", "dm_nfnet_f0"),
    "ConvNeXt": (
        *("convnext_atto", "convnext_femto", "convnext_pico", "convnext_nano"),
        *("convnext_tiny", "convnext_small", "convnext_base"),
        *("convnextv2_atto", "convnextv2_femto", "convnextv2_pico", "convnextv2_nano", "convnextv2_tiny"),
    ),
    "The paper's": (
        *("resnet18_cifar", "resnet50_cifar", "densenet121_cifar", "senet18_cifar", "vgg19_cifar", "wrn32_4_cifar"),
    ),
}
"""Family -> names of models, the cheapest first, all timm's but for the last family
(:mod:`dcn_plugin.models.paper_nets`)."""

BASES: tuple[str, ...] = tuple(
    dict.fromkeys(
        [
            *(name for names in FAMILIES.values() for name in names),
            *(name for names in NAMED.values() for name in names if is_model(name)),  # an older timm lacks some
        ]
    )
)
"""All models that are registered as ``defective_<name>``: those of :data:`FAMILIES`, then the others of the table."""

REFUSED: dict[str, str] = {
    "hrnet_w18": "its resolution goes back up, so that it has no bottom and no top; defectify() takes it with globs",
    "resnetv2_50d_evos": "EvoNorm computes norm and activation in one formula, with no place for a mask between them",
    "resnetv2_50d_frn": "FilterResponseNorm thresholds in the same formula, with no place for a mask before it",
    "convnext_zepto_rms": "timm's SimpleNorm2d has no twin with a slot behind the norm",
}
"""Name -> why ``blocks="bottom"`` is refused by a named error; one example a kind, none of them is registered."""

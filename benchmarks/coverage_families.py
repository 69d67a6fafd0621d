"""The families that `coverage.py` converts: for every convolutional module of timm its families, a small member each.

A family is what has an architecture, a paper or building blocks of its own. What differs from a listed one only in
width, depth, training or a table of settings is left out. Names of families are timm's own, or their paper's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        name: of the family.
        module: the module of `timm.models` that has it.
        model: a small member.
        size: side of the input in pixels.
        arguments: further arguments of `create_model` that make it smaller and leave its structure as it is.
    """

    name: str
    module: str
    model: str
    size: int = 64
    arguments: dict[str, Any] = field(default_factory=dict)


CONVOLUTIONAL = (
    Family("RepVGG", "byobnet", "repvgg_a0"),
    Family("MobileOne", "byobnet", "mobileone_s0"),
    Family("GENet", "byobnet", "gernet_s"),
    Family("GC-ResNeXt", "byobnet", "gcresnext26ts"),
    Family("RegNetZ (byob)", "byobnet", "regnetz_b16"),
    Family("ConvMixer", "convmixer", "convmixer_768_32"),
    Family("ConvNeXt", "convnext", "convnext_atto"),
    Family("ConvNeXt V2", "convnext", "convnextv2_atto"),
    Family("CSPResNet", "cspnet", "cspresnet50"),
    Family("DarkNet", "cspnet", "darknet17"),
    Family("CS3DarkNet", "cspnet", "cs3darknet_s"),
    Family("CSPNeXt", "cspnext", "cspnext_tiny"),
    Family("DenseNet", "densenet", "densenet121"),
    Family("DLA", "dla", "dla46_c"),
    Family("DLA-Res2Net", "dla", "dla60_res2net"),
    Family("DPN", "dpn", "dpn48b"),
    Family("EfficientNet", "efficientnet", "efficientnet_b0"),
    Family("EfficientNetV2", "efficientnet", "tf_efficientnetv2_b0"),
    Family("EfficientNet-EdgeTPU", "efficientnet", "efficientnet_es"),
    Family("CondConv-EfficientNet", "efficientnet", "efficientnet_cc_b0_4e"),
    Family("MobileNetV1", "efficientnet", "mobilenetv1_100"),
    Family("MobileNetV2", "efficientnet", "mobilenetv2_050"),
    Family("MNASNet", "efficientnet", "mnasnet_050"),
    Family("FBNet", "efficientnet", "fbnetc_100"),
    Family("MixNet", "efficientnet", "mixnet_s"),
    Family("TinyNet", "efficientnet", "tinynet_e"),
    Family("FasterNet", "fasternet", "fasternet_t0"),
    Family("FastViT", "fastvit", "fastvit_t8"),
    Family("FocalNet", "focalnet", "focalnet_tiny_srf"),
    Family("GhostNet", "ghostnet", "ghostnet_050"),
    Family("GhostNetV2", "ghostnet", "ghostnetv2_100"),
    Family("GhostNetV3", "ghostnet", "ghostnetv3_050"),
    Family("HardCoRe-NAS", "hardcorenas", "hardcorenas_a"),
    Family("HGNet", "hgnet", "hgnet_tiny"),
    Family("HGNetV2", "hgnet", "hgnetv2_b0"),
    Family("HRNet", "hrnet", "hrnet_w18_small"),
    Family("InceptionNeXt", "inception_next", "inception_next_atto"),
    Family("Inception-ResNet-V2", "inception_resnet_v2", "inception_resnet_v2", 96),
    Family("Inception-V3", "inception_v3", "inception_v3", 96),
    Family("Inception-V4", "inception_v4", "inception_v4", 96),
    Family("LCNetV2", "lcnetv2", "lcnetv2_small"),
    Family("MambaOut", "mambaout", "mambaout_femto"),
    Family("PoolFormer", "metaformer", "poolformer_s12"),
    Family("ConvFormer", "metaformer", "convformer_s18"),
    Family("MobileNetV3", "mobilenetv3", "mobilenetv3_small_050"),
    Family("MobileNetV4", "mobilenetv3", "mobilenetv4_conv_small_050"),
    Family("FBNetV3", "mobilenetv3", "fbnetv3_b"),
    Family("LCNet", "mobilenetv3", "lcnet_050"),
    Family("MobileViT", "mobilevit", "mobilevit_xxs"),
    Family("NASNet", "nasnet", "nasnetalarge", 64, {"stem_size": 32, "num_features": 1056}),  # NASNet-A (4 @ 1056)
    Family("NF-ResNet", "nfnet", "nf_resnet26"),
    Family("NF-RegNet", "nfnet", "nf_regnet_b0"),
    Family("NFNet", "nfnet", "nfnet_l0"),
    Family("PNASNet", "pnasnet", "pnasnet5large"),
    Family("RDNet", "rdnet", "rdnet_tiny"),
    Family("RegNetX", "regnet", "regnetx_002"),
    Family("RegNetY", "regnet", "regnety_002"),
    Family("RegNetZ", "regnet", "regnetz_005"),
    Family("RepGhostNet", "repghost", "repghostnet_050"),
    Family("RepViT", "repvit", "repvit_m0_9"),
    Family("Res2Net", "res2net", "res2net50_14w_8s"),
    Family("ResNeSt", "resnest", "resnest14d"),
    Family("ResNet", "resnet", "resnet18"),
    Family("ResNeXt", "resnet", "resnext50_32x4d"),
    Family("SE-ResNet", "resnet", "seresnet18"),
    Family("ECA-ResNet", "resnet", "ecaresnet26t"),
    Family("ResNet-Blur", "resnet", "resnetblur18"),
    Family("ResNetV2", "resnetv2", "resnetv2_18"),
    Family("BiT", "resnetv2", "resnetv2_50x1_bit"),
    Family("ReXNet", "rexnet", "rexnet_100"),
    Family("SelecSLS", "selecsls", "selecsls42"),
    Family("SENet", "senet", "legacy_seresnext26_32x4d"),
    Family("SKNet", "sknet", "skresnet18"),
    Family("StarNet", "starnet", "starnet_s050"),
    Family("TResNet", "tresnet", "tresnet_m"),
    Family("VGG", "vgg", "vgg11_bn", 224, {"mlp_ratio": 1 / 64}),
    Family("VoVNet", "vovnet", "vovnet39a"),
    Family("ESE-VoVNet", "vovnet", "ese_vovnet19b_slim_dw"),
    Family("Xception", "xception", "legacy_xception"),
    Family("Aligned Xception", "xception_aligned", "xception41"),
)

TRANSFORMERS = (
    Family("ViT", "vision_transformer", "vit_tiny_patch16_224", 64, {"img_size": 64}),
    Family("DeiT", "deit", "deit_tiny_patch16_224", 64, {"img_size": 64}),
    Family("Swin", "swin_transformer", "swin_tiny_patch4_window7_224", 64, {"img_size": 64}),
)

#: modules of timm without a convolutional family: what they are instead
OTHER_MODULES = {
    "attention everywhere": (
        "beit", "cait", "convit", "crossvit", "davit", "deepseek_vit", "deit", "eva", "gcvit", "gemma4_vit", "hiera",
        "hieradet_sam2", "mvitv2", "naflexvit", "nest", "pit", "pvt_v2", "qwen3_vit", "swin_transformer",
        "swin_transformer_v2", "swin_transformer_v2_cr", "tnt", "twins", "vision_transformer",
        "vision_transformer_relpos", "vision_transformer_sam", "volo", "xcit",
    ),
    "convolution and attention (MobileViT stands for them)": (
        "byoanet", "coat", "cpubone", "csatv2", "edgenext", "efficientformer", "efficientformer_v2",
        "efficientvit_mit", "efficientvit_msra", "iformer", "levit", "lowformer", "maxxvit", "mobilenetv5", "nextvit",
        "shvit", "swiftformer", "tiny_vit", "visformer", "vision_transformer_hybrid", "vitamin",
    ),
    "multi-layer perceptrons, recurrence or state spaces": ("efficientvim", "mlp_mixer", "sequencer"),
}  # fmt: skip

"""Adapt known networks to small images, whose ImageNet stems would leave one pixel of 32; build CIFAR's own."""

from typing import Any

import torch
from torch import Tensor, nn

SMALL_IMAGE = 64  # pixels of a side; below it, ImageNet stems lose most of the image, so strides are removed
# Adapted in a later version than the others, so their store keys differ from those of the unadapted networks.
LATER = ("vgg16_bn", "efficientnet_b0", "densenet121", "convnext_tiny")


def adapt(name: str, model: Any, *, pretrained: bool, num_classes: int) -> None:
    """Remove early strides in place to keep the resolution of small images; leave unknown networks as they are."""
    match name:
        case "resnet18":
            model.conv1 = shrink_stem(model.conv1, pretrained=pretrained)
            model.maxpool = nn.Identity()
        case "mobilenet_v3_small":
            model.features[0][0].stride = (1, 1)
            model.features[1].block[0][0].stride = (1, 1)
        case "efficientnet_b0":
            model.features[0][0].stride = (1, 1)
            model.features[2][0].block[1][0].stride = (1, 1)
        case "densenet121":
            model.features.conv0 = shrink_stem(model.features.conv0, pretrained=pretrained)
            model.features.pool0 = nn.Identity()
        case "convnext_tiny":
            if not pretrained:  # weights for patches of 4x4 pixels do not fit patches of 2x2
                model.features[0][0] = nn.Conv2d(3, 96, 2, stride=2)
                nn.init.trunc_normal_(model.features[0][0].weight, std=0.02)
        case "vgg16_bn":
            if not pretrained:  # ImageNet's classifier holds 120 M weights for a map of 7x7 pixels
                model.avgpool = nn.AdaptiveAvgPool2d(1)
                model.classifier = nn.Sequential(
                    *(nn.Linear(512, 512), nn.ReLU(), nn.Dropout(0.5)), nn.Linear(512, num_classes)
                )


def shrink_stem(old: nn.Conv2d, *, pretrained: bool) -> nn.Conv2d:
    """Build a 3x3 convolution of stride 1 that replaces a 7x7 one of stride 2."""
    stem = nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    if pretrained:
        with torch.no_grad():
            stem.weight.copy_(old.weight[:, :, 2:5, 2:5])  # the centre of the 7x7 filters
    return stem


def build_alexnet_cifar(num_classes: int, image_size: int, *, small: bool) -> nn.Sequential:
    """Build AlexNet with five 3x3 convolutions, for images from 16 pixels: 4.4 M parameters, or 0.8 M if small."""
    widths = (32, 96, 192, 128, 128) if small else (64, 192, 384, 256, 256)
    hidden, dropout = (256, 0.2) if small else (1024, 0.3)
    stride = 1 if image_size < SMALL_IMAGE // 2 else 2 if image_size < 2 * SMALL_IMAGE else 4
    features: list[nn.Module] = []
    channels = 3
    for index, width in enumerate(widths):
        features += [nn.Conv2d(channels, width, 3, stride=stride if index == 0 else 1, padding=1), nn.ReLU()]
        if index in (0, 1, 4):
            features.append(nn.MaxPool2d(2))
        channels = width
    classifier = [
        *(nn.Dropout(dropout), nn.Linear(channels * 4, hidden), nn.ReLU()),
        *(nn.Dropout(dropout), nn.Linear(hidden, hidden), nn.ReLU()),
        nn.Linear(hidden, num_classes),
    ]
    side = -(-image_size // stride) // 8
    # equal where the side divides evenly; the adaptive one has no deterministic backward pass on CUDA
    pool = nn.AvgPool2d(side // 2) if side % 2 == 0 else nn.AdaptiveAvgPool2d(2)
    model = nn.Sequential(*features, pool, nn.Flatten(), *classifier)
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            # without BatchNorm, PyTorch's default initial weights are too small to learn in a few epochs
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        hidden = torch.relu(self.bn1(self.conv1(image)))
        return torch.relu(self.bn2(self.conv2(hidden)) + self.shortcut(image))


def build_resnet_cifar(depth: int, num_classes: int, image_size: int) -> nn.Sequential:
    """Build the ResNet for CIFAR of He et al. (arXiv:1512.03385, section 4.2): 6n + 2 layers of 16, 32 and 64 channels.

    ResNet-8 (n = 1) is the image classifier of MLPerf Tiny. Shortcuts are 1x1 convolutions where the width changes.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(3, 16, 3, stride=_stem_stride(image_size), padding=1, bias=False),
        *(nn.BatchNorm2d(16), nn.ReLU()),
    ]
    channels = 16
    for width in (16, 32, 64):
        for block in range((depth - 2) // 6):
            layers.append(ResidualBlock(channels, width, stride=2 if block == 0 and width > 16 else 1))
            channels = width
    return _initialise(nn.Sequential(*layers, *_make_head(channels, num_classes)))


def build_mobilenet_v1_small(num_classes: int, image_size: int) -> nn.Sequential:
    """Build a MobileNetV1 (arXiv:1704.04861) for small images: depthwise and 1x1 convolutions and ReLU.

    It has no squeeze-excite, only plain operators for which every INT8 runtime has fast kernels.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(3, 32, 3, stride=_stem_stride(image_size), padding=1, bias=False),
        *(nn.BatchNorm2d(32), nn.ReLU()),
    ]
    channels = 32
    for width, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        layers += [
            nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False),
            *(nn.BatchNorm2d(channels), nn.ReLU()),
            nn.Conv2d(channels, width, 1, bias=False),
            *(nn.BatchNorm2d(width), nn.ReLU()),
        ]
        channels = width
    return _initialise(nn.Sequential(*layers, *_make_head(channels, num_classes)))


def _make_head(channels: int, num_classes: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)


def _stem_stride(image_size: int) -> int:
    """Return the stride after which the first layers see about as many pixels as a CIFAR image has."""
    return 1 if image_size < SMALL_IMAGE else 2 if image_size < 2 * SMALL_IMAGE else 4


def _initialise(model: nn.Sequential) -> nn.Sequential:
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return model

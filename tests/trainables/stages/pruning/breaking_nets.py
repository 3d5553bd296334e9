"""Networks made to break structured pruning, each by one thing that its middle does to channels, and sound ones.

PYTHONPATH=tests/trainables/stages/pruning python -m trainables.stages.pruning --check --models breaking_nets:Flipped
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class Plain(nn.Module):
    """Two convolutions with a norm between, a map of 2 x 2, a linear head; 32 channels a layer, all to be cut."""

    whole: tuple[str, ...] = ()
    """Layers that keep all channels, as the trace gives up on them."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.second, self.head = nn.Conv2d(32, 32, 3, padding=1), nn.Linear(32 * 4, num_classes)

    def middle(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(x))

    def pooled(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pooled(self.second(self.middle(self.first(images)))).flatten(1))
        return logits


class ChannelsLast(Plain):
    """Flattens as networks ported from TensorFlow do."""

    def pooled(self, x: Tensor) -> Tensor:
        return super().pooled(x).permute(0, 2, 3, 1)


class Flipped(Plain):
    def middle(self, x: Tensor) -> Tensor:
        return x.flip(1)


class Rolled(Plain):
    def middle(self, x: Tensor) -> Tensor:
        return self.norm(x).roll(3, 1)


class Shuffled(Plain):
    def middle(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2)


class Averaged(Plain):
    def middle(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x.mean(1, keepdim=True))


class Softmax(Plain):
    def middle(self, x: Tensor) -> Tensor:
        return x.softmax(1)


class Neighbours(Plain):
    """AlexNet's norm: every channel is divided by a sum over those beside it."""

    def middle(self, x: Tensor) -> Tensor:
        return F.local_response_norm(self.norm(x), 5, alpha=1.0)


class NormedTogether(Plain):
    """GroupNorm without parameters, which no list of layers shows."""

    def middle(self, x: Tensor) -> Tensor:
        return F.group_norm(x, 1)


class Summed(Plain):
    def middle(self, x: Tensor) -> Tensor:
        return x.cumsum(1)


class Sorted(Plain):
    def middle(self, x: Tensor) -> Tensor:
        return x.sort(1).values


class Attended(Plain):
    """Attention of channels to channels, as in XCiT."""

    def middle(self, x: Tensor) -> Tensor:
        rows = x.flatten(2)
        return ((rows @ rows.transpose(1, 2)).softmax(-1) @ rows).view_as(x)


class Neighbouring(Plain):
    """ECA: a convolution along the channels decides what each is worth."""

    whole = ("first",)

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__(num_classes)
        self.along = nn.Parameter(torch.randn(1, 1, 3))

    def middle(self, x: Tensor) -> Tensor:
        worth = F.conv1d(x.mean((2, 3)).unsqueeze(1), self.along, padding=1)
        return x * torch.sigmoid(worth).transpose(1, 2).unsqueeze(-1)


class Mixed(Plain):
    """A fixed matrix over the channels, which is a buffer and no parameter."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__(num_classes)
        self.register_buffer("mix", torch.randn(32, 32))

    def middle(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,cd->ndhw", x, self.get_buffer("mix")[: x.shape[1], : x.shape[1]])


class Scaled(Plain):
    """A buffer of one number a channel, sliced to the channels there are."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__(num_classes)
        self.register_buffer("scale", torch.rand(32) + 0.5)

    def middle(self, x: Tensor) -> Tensor:
        return x * self.get_buffer("scale")[: x.shape[1]].view(1, -1, 1, 1)


class Positions(Plain):
    """Each channel is weighted by its number, which is another one after a cut."""

    def middle(self, x: Tensor) -> Tensor:
        return x * torch.arange(1, x.shape[1] + 1, device=x.device).view(1, -1, 1, 1)


class Spread(Plain):
    """Channels become positions (pixel shuffle) and come back in another order."""

    def middle(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(F.pixel_shuffle(x, 2).transpose(2, 3), 2)


class Maxout(Plain):
    whole = ("first",)

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__(num_classes)
        self.second = nn.Conv2d(16, 32, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, 2)).amax(2)


class WideMaxout(Plain):
    """The best of pairs: where one channel of a pair goes, the trace takes the other one, too."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__(num_classes)
        self.first, self.second = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, 2)).amax(2)


class Halved(Plain):
    """A gated linear unit."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__(num_classes)
        self.second = nn.Conv2d(16, 32, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        return F.glu(x, 1)


class Swapped(Plain):
    """Halves change places."""

    def middle(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, 1)
        return torch.cat([other, one], 1)


class Strided(Plain):
    """Every second channel first."""

    whole = ("first",)

    def middle(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, ::2], x[:, 1::2]], 1)


class Padded(Plain):
    """Option A of CIFAR ResNets: the shortcut is filled up with zeros."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__(num_classes)
        self.second, self.head = nn.Conv2d(32, 64, 3, padding=1), nn.Linear(64 * 4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.middle(self.first(images))
        x = self.second(x) + F.pad(x, (0, 0, 0, 0, 16, 16))
        logits: Tensor = self.head(self.pooled(x).flatten(1))
        return logits


class MeanBeside(Plain):
    """The mean over the channels goes on as one more."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__(num_classes)
        self.second = nn.Conv2d(33, 32, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.mean(1, keepdim=True)], 1)


class Twice(Plain):
    """One layer called twice."""

    def middle(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(x)))


class Tied(Plain):
    def __init__(self, num_classes: int = 5) -> None:
        super().__init__(num_classes)
        self.third = nn.Conv2d(32, 32, 3, padding=1)
        self.third.weight = self.second.weight

    def middle(self, x: Tensor) -> Tensor:
        return torch.relu(self.third(torch.relu(x)))


class GroupNormed(Plain):
    def __init__(self, num_classes: int = 5) -> None:
        super().__init__(num_classes)
        self.norm = nn.GroupNorm(4, 32)


class Steep(Plain):
    def __init__(self, num_classes: int = 5) -> None:
        super().__init__(num_classes)
        self.norm = nn.PReLU(32)


class WeightNormed(Plain):
    def __init__(self, num_classes: int = 5) -> None:
        super().__init__(num_classes)
        self.first = weight_norm(self.first)


class Cosine(Plain):
    """Logits are cosines of features and a parameter of its own."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__(num_classes)
        self.head = nn.Identity()
        self.classes = nn.Parameter(torch.randn(num_classes, 128))

    def forward(self, images: Tensor) -> Tensor:
        return 10 * F.linear(F.normalize(super().forward(images)), F.normalize(self.classes))


class TurnedGroups(Plain):
    """ShuffleNet: grouped convolutions with a shuffle between."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__(num_classes)
        self.second = nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.grouped = nn.Conv2d(32, 32, 1, groups=4)

    def middle(self, x: Tensor) -> Tensor:
        return self.grouped(x).unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2)


class Grouped(Plain):
    """ResNeXt: sound, every group loses the same channels."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__(num_classes)
        self.second = nn.Conv2d(32, 32, 3, padding=1, groups=2)


class Depthwise(Plain):
    def __init__(self, num_classes: int = 5) -> None:
        super().__init__(num_classes)
        self.norm = nn.Conv2d(32, 32, 3, padding=1, groups=32)


class Squeezed(Plain):
    """Squeeze and excitation."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__(num_classes)
        self.down, self.up = nn.Linear(32, 16), nn.Linear(16, 32)

    def middle(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3))))))[..., None, None]


class Residual(Plain):
    def middle(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(x))
        return x + self.second(x)


class Joined(Plain):
    """Two branches, one after the other in the channels."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__(num_classes)
        self.beside = nn.Conv2d(3, 32, 1)
        self.second = nn.Conv2d(64, 32, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.cat([self.beside(images), self.middle(self.first(images))], 1)
        logits: Tensor = self.head(self.pooled(self.second(x)).flatten(1))
        return logits


class Sigmoid(Plain):
    """A removed channel that puts out zero would still give 0.5 behind it; nobody reads that."""

    def middle(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.norm(x))


class LayerNormed(Plain):
    """Its mean and variance are of fewer channels after the cut, which recovery has to learn."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__(num_classes)
        self.norm = nn.LayerNorm(32)
        nn.init.normal_(self.norm.bias)

    def middle(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Masked(Plain):
    """The trace gives up on the gate: both halves would have to lose the same channels."""

    whole = ("first", "mask")

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__(num_classes)
        self.mask = nn.Conv2d(3, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.middle(self.first(images)) * torch.sigmoid(self.mask(images))
        logits: Tensor = self.head(self.pooled(self.second(x)).flatten(1))
        return logits


BROKEN = (
    *(ChannelsLast, Flipped, Rolled, Shuffled, Averaged, Softmax, Neighbours, NormedTogether, Summed, Sorted, Attended),
    *(Mixed, Scaled, Positions, Spread, Halved, Swapped, Strided, MeanBeside, Tied, TurnedGroups),
)
"""The trace is wrong about one layer at least; without cutting that, they can be cut."""
UNKNOWN = (GroupNormed, Steep, WeightNormed, Cosine)
"""With parameters whose channels nobody can follow."""
SOUND = (
    *(Plain, Sigmoid, LayerNormed, Depthwise, Grouped, Squeezed, Residual, Joined, Twice),
    *(Neighbouring, Maxout, Masked),
)

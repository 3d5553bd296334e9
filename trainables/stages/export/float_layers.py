"""Find the layers that INT8 harms most, and keep them in float (no torch).

Shape letters: B images, C classes.
"""

from collections.abc import Callable

import numpy as np

from trainables.stages.export.convert import Int8Converter
from trainables.stages.export.session import open_session, run_logits

RANKING_IMAGES = 16


def rank(converter: Int8Converter) -> list[str]:
    """The nodes of all layers, most harmed by INT8 first.

    The harm is the mean squared change of the logits, over some calibration images, in a file in which this layer alone
    is quantised: its input, weight and output. An outlier in a tensor shows at both layers that share it.
    """
    step = max(1, len(converter.pixels) // RANKING_IMAGES)
    images = np.ascontiguousarray(converter.pixels[::step][:RANKING_IMAGES])
    expected_BC = run_logits(open_session(converter.source, threads=1), images)

    def harm(node: str) -> float:
        got_BC = run_logits(open_session(converter.convert(only=[node]), threads=1), images)
        return float(np.nan_to_num(np.square(got_BC - expected_BC).mean(), nan=np.inf))

    return sorted(converter.layers(), key=harm, reverse=True)


def keep_in_float(
    converter: Int8Converter, loss: Callable[[bytes], float], *, whole: float, tolerance: float
) -> tuple[bytes, tuple[str, ...]] | None:
    """Find the INT8 file with the fewest layers in float whose loss is within the tolerance.

    The layers are the first of `rank`, at most half of all; bisection finds how many, as if each could only help. If
    half are not enough they are kept all the same, provided that they help.

    Args:
        loss: what a file loses against FP32.
        whole: the loss of the file without a layer in float, above the tolerance.

    Returns:
        The file and the names of its float layers; None if keeping half of the layers does not help.
    """
    names, ranked = converter.layers(), rank(converter)
    too_few, enough = 0, len(ranked) // 2
    file = converter.convert(in_float=ranked[:enough])
    lost = loss(file)
    if enough == 0 or lost >= whole:
        return None
    while lost <= tolerance and enough - too_few > 1:
        middle = (too_few + enough) // 2
        smaller = converter.convert(in_float=ranked[:middle])
        if loss(smaller) <= tolerance:
            enough, file = middle, smaller
        else:
            too_few = middle
    return file, tuple(dict.fromkeys(names[node] for node in ranked[:enough]))

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.config.candidate import DataConfig
from trainables.stages.data.splits import allocate, cut_validation, limit_training, sample_evenly


def test_shares_in_closed_form() -> None:
    assert allocate(10, [50, 30, 20]) == [5, 3, 2]
    assert allocate(3, [10, 10, 10]) == [1, 1, 1]
    assert allocate(5, [10, 10]) == [3, 2]  # tie: the earlier class
    assert allocate(4, [97, 2, 1]) == [2, 1, 1]  # at least one a class
    assert allocate(98, [97, 2, 2], spare=1) == [96, 1, 1]  # at least one left


@given(counts=st.lists(st.integers(2, 60), min_size=1, max_size=12), share=st.floats(0, 1), spare=st.integers(0, 1))
def test_shares_are_exact_bounded_and_proportional(counts: list[int], share: float, spare: int) -> None:
    least, most = len(counts), sum(counts) - spare * len(counts)
    total = least + round(share * (most - least))
    shares = allocate(total, counts, spare=spare)
    assert sum(shares) == total
    assert all(1 <= s <= count - spare for s, count in zip(shares, counts, strict=True))
    quotas = [total * count / sum(counts) for count in counts]
    if all(int(q) >= 1 and q + 1 <= count - spare for q, count in zip(quotas, counts, strict=True)):
        assert all(abs(s - q) < 1 for s, q in zip(shares, quotas, strict=True))


@given(size=st.integers(0, 500), total=st.integers(1, 500))
def test_evenly_takes_different_images_with_equal_gaps(size: int, total: int) -> None:
    picks = sample_evenly(size, total)
    assert len(picks) == len(set(picks)) == min(size, total)
    gaps = np.diff(picks, append=size)
    assert len(picks) == 0 or (picks[0] == 0 and gaps.max() - gaps.min() <= 1)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**40), limit=st.integers(3, 80))
def test_train_and_validation_are_disjoint_deterministic_and_stratified(seed: int, limit: int) -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    config = DataConfig(val_fraction=0.2, split_seed=seed, train_limit=limit)
    train, val = cut_validation(labels, ("a", "b", "c"), config)
    assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(100))
    assert np.bincount(labels[val]).tolist() == [10, 6, 4]
    kept = limit_training(labels, train, 3, config)
    assert len(kept) == limit and set(kept) <= set(train) and len(set(labels[kept])) == 3
    assert np.array_equal(kept, limit_training(labels, train, 3, config))


def test_seed_of_the_split_decides_which_images_are_validation() -> None:
    labels = np.repeat([0, 1], 50)
    first, second = (cut_validation(labels, ("a", "b"), DataConfig(split_seed=seed))[1] for seed in (0, 1))
    assert not np.array_equal(first, second)

"""Which sample comes when: the order in which the Model Zoo's map-style reader goes through a data set.

Pure index arithmetic, random access: the samples of any batch are known without going through those before it.
Sources: cerebras.pytorch utils/data/sampler.py (ShuffleSampler, BatchSampler), Model Zoo
data/common/h5_map_dataset/readers.py (Mixture, _DatasetSegmenter), both of 2.10.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cerebras_jais.data.documents import DataError
from cerebras_jais.ranges import subset_bounds


@dataclass(frozen=True)
class SampleOrder:
    """The endless sequence of batches over `length` stored samples.

    An epoch is `num_samples` long (`length` if None): shorter cuts the data set, longer repeats it. With shuffle
    each epoch is a permutation seeded by shuffle_seed + epoch. With drop_last, what is left of an epoch after its
    last whole batch begins the next one, so batch k is samples k B to (k + 1) B of all epochs strung together;
    otherwise the last batch of each epoch is short.
    """

    length: int
    batch_size: int
    shuffle: bool = False
    shuffle_seed: int = 0
    drop_last: bool = True
    num_samples: int | None = None

    @property
    def epoch_samples(self) -> int:
        return self.length if self.num_samples is None else self.num_samples

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches of the first epoch with drop_last (later ones may have one more), all batches otherwise."""
        whole, rest = divmod(self.epoch_samples, self.batch_size)
        return whole if self.drop_last or not rest else whole + 1

    def batch_indices(self, batch: int, start_sample: int = 0) -> np.ndarray:
        """Return the sample indices (int64, at most batch_size) of the `batch`-th batch of the run, from 0.

        The run begins `start_sample` samples into the endless sequence: what another run, perhaps of another batch
        size, has already consumed.
        """
        n = self.epoch_samples
        if self.drop_last:
            position = start_sample + batch * self.batch_size
            parts = []
            wanted = self.batch_size
            while wanted:
                epoch, start = divmod(position, n)
                stop = min(start + wanted, n)
                parts.append(self._epoch_slice(epoch, start, stop))
                position += stop - start
                wanted -= stop - start
            return np.concatenate(parts)
        epoch, start = divmod(start_sample, n)
        first_epoch_batches = -(-(n - start) // self.batch_size)
        if batch >= first_epoch_batches:
            later, batch = divmod(batch - first_epoch_batches, self.batches_per_epoch)
            epoch, start = epoch + 1 + later, 0
        start += batch * self.batch_size
        return self._epoch_slice(epoch, start, min(start + self.batch_size, n))

    def _epoch_slice(self, epoch: int, start: int, stop: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(start, stop, dtype=np.int64) % self.length
        return _permutation(self.length, self.epoch_samples, self.shuffle_seed + epoch)[start:stop]


# Four: a batch that spans the end of one needs two, for training and for evaluation.
@lru_cache(maxsize=4)
def _permutation(length: int, num_samples: int, seed: int) -> np.ndarray:
    # torch's generator makes the Model Zoo's order; no other would.
    import torch

    generator = torch.Generator()
    generator.manual_seed(seed)
    last = torch.randperm(length, generator=generator).numpy()
    if num_samples <= length:
        return last[:num_samples]
    # All copies of the data set but the last are whole and in order before the outer shuffle.
    copies = math.ceil(num_samples / length)
    repeated = np.concatenate([np.tile(np.arange(length), copies - 1), last])[:num_samples]
    shuffled: np.ndarray = repeated[torch.randperm(num_samples, generator=generator).numpy()]
    return shuffled


def subset_indices(length: int, data_subset: str) -> np.ndarray:
    """Return the sample indices (int64, rising) that ranges such as "0.0-0.5" or "0.1-0.3,0.7-1.0" select.

    A range start-end selects int(length start) to int(length end). Raises DataError for ranges that cannot be read,
    leave [0, 1] or do not rise.
    """
    try:
        ranges = subset_bounds(data_subset)
    except ValueError as error:
        raise DataError(f"data_subset: {error}") from None
    return np.concatenate([np.arange(int(length * start), int(length * end), dtype=np.int64) for start, end in ranges])


def mixture_indices(
    lengths: Sequence[int], weights: Sequence[float], interleave: bool, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (source, sample), both int64 [samples of one epoch]: which source each sample is from, and which one.

    An epoch is long enough that every source of more than 5% is seen whole; shorter sources repeat. With interleave
    the sources are mixed at random by `seed` but each stays in its own order; without it they follow one another.
    Raises DataError for weights that do not fit.
    """
    if len(weights) != len(lengths) or any(weight < 0 for weight in weights) or not any(weights):
        raise DataError(f"mixture: weights {list(weights)} must be nonnegative, not all 0, one for each data_dir")
    kept = [source for source, weight in enumerate(weights) if weight > 0]
    total = sum(weights[source] for source in kept)
    shares = [weights[source] / total for source in kept]
    # The Model Zoo pairs the lengths of all sources, those of weight 0 too, with the shares of the kept ones. With a
    # weight of 0 that is not what was meant, but it decides the length of an epoch there, hence here.
    epoch = max((length / share for length, share in zip(lengths, shares, strict=False) if share > 0.05), default=0)
    if not epoch:
        raise DataError("mixture: no data_dir has a share above 5%; the length of an epoch is not defined")
    boundaries = np.concatenate([[0], np.cumsum([int(epoch * share) for share in shares])]).astype(np.int64)
    indices = np.arange(boundaries[-1], dtype=np.int64)
    if interleave:
        np.random.default_rng(seed).shuffle(indices)
        which = np.searchsorted(boundaries, indices, side="right") - 1
        for slot, (start, stop) in enumerate(itertools.pairwise(boundaries)):
            indices[which == slot] = np.arange(start, stop)
    which = np.searchsorted(boundaries, indices, side="right") - 1
    kept_lengths = np.asarray([lengths[source] for source in kept], dtype=np.int64)
    return np.asarray(kept, dtype=np.int64)[which], (indices - boundaries[which]) % kept_lengths[which]

"""Cells out of a volume, in the usual three steps: a membrane map, supervoxels, agglomeration.

The membrane map is a random forest on Gaussian, gradient and Hessian features of three scales, as in ilastik;
supervoxels are a watershed of it from the peaks of the distance to a membrane; and neighbours are merged, those with
the weakest boundary between them first, until a mean boundary of ``stop``. Forest and ``stop`` are learnt from expert
labels; every other number is fixed here, and was not tuned.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.feature import multiscale_basic_features
from skimage.metrics import adapted_rand_error, contingency_table, variation_of_information
from skimage.morphology import local_maxima
from skimage.segmentation import find_boundaries, watershed
from sklearn.ensemble import RandomForestClassifier

SCALES = (1.0, 4.0)
"""Smallest and largest sigma of the features, voxels; they double in between."""
SAMPLES_PER_CLASS = 100_000
TREES, DEPTH, LEAF = 30, 12, 20
MEMBRANE = 0.5
"""A voxel whose membrane probability is above it is membrane, for the seeds."""
SEED_SIGMA = 2.0
"""By which the distance to a membrane is smoothed before its peaks are taken, voxels."""
STOPS = np.round(np.arange(0.05, 1, 0.025), 3)
TOLERANCE = 2.0
"""How far a boundary may lie from the experts' and still be found, voxels."""


def features(volume: np.ndarray) -> np.ndarray:
    """What the forest sees of each voxel of an 8-bit volume ``(z, y, x)``: float32 ``(z, y, x, feature)``."""
    grey = volume.astype(np.float32) / np.float32(np.iinfo(volume.dtype).max)
    low, high = SCALES
    return multiscale_basic_features(grey, sigma_min=low, sigma_max=high)


@dataclass(frozen=True)
class Fragments:
    """Supervoxels ``(z, y, x)``, numbered from 0, and the order in which agglomeration merges them."""

    labels: np.ndarray
    pairs: np.ndarray
    """``(merges, 2)``: each joins the groups of two supervoxels."""
    heights: np.ndarray
    """``(merges,)``: the mean boundary that a merge, or one before it, went through; it never falls."""

    def merged(self, stop: float) -> np.ndarray:
        """The segment of each supervoxel, after every merge up to a mean boundary of ``stop``."""
        count = int(self.labels.max()) + 1
        first, second = self.pairs[self.heights <= stop].T
        graph = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(count, count))
        return connected_components(graph, directed=False)[1]

    def segments(self, stop: float) -> np.ndarray:
        """Segments ``(z, y, x)``, numbered from 1."""
        return self.merged(stop)[self.labels] + 1


def fragment(membrane: np.ndarray) -> Fragments:
    """Supervoxels of a membrane map ``(z, y, x)`` of probabilities, and the order of their merges."""
    distance = ndimage.distance_transform_edt(membrane < MEMBRANE).astype(np.float32)
    seeds, count = ndimage.label(local_maxima(ndimage.gaussian_filter(distance, SEED_SIGMA)) & (distance > 0))
    labels = watershed(membrane, seeds if count else np.ones(membrane.shape, np.int32)) - 1
    return Fragments(labels, *merge_order(*boundaries(labels, membrane)))


def boundaries(labels: np.ndarray, membrane: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which labels touch ``(boundaries, 2)``, the mean membrane between them, and over how many faces of voxels.

    The membrane at a face is the greater one of the two voxels beside it.
    """
    count = int(labels.max()) + 1
    keys, values = [], []
    for axis in range(labels.ndim):
        before, after = (tuple(part if a == axis else slice(None) for a in range(labels.ndim)) for part in _SIDES)
        touching = labels[before] != labels[after]
        a, b = labels[before][touching].astype(np.int64), labels[after][touching].astype(np.int64)
        keys.append(np.minimum(a, b) * count + np.maximum(a, b))
        values.append(np.maximum(membrane[before][touching], membrane[after][touching]))
    unique, place, faces = np.unique(np.concatenate(keys), return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=np.concatenate(values), minlength=len(unique)) / np.maximum(faces, 1)
    return np.stack([unique // count, unique % count], axis=1), means, faces


_SIDES = (slice(None, -1), slice(1, None))


def merge_order(pairs: np.ndarray, means: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Agglomeration to the end: the weakest mean boundary first, means over joined boundaries weighted by their faces.

    Returns:
        The merges ``(merges, 2)`` and the mean boundary of each, as a running maximum ``(merges,)``.
    """
    around: dict[int, dict[int, tuple[float, int]]] = {}
    queue = []
    for (a, b), mean, size in zip(pairs.tolist(), means.tolist(), faces.tolist(), strict=True):
        around.setdefault(a, {})[b] = around.setdefault(b, {})[a] = (mean * size, size)
        queue.append((mean, a, b, size))
    heapq.heapify(queue)
    order, heights = [], []
    while queue:
        mean, a, b, size = heapq.heappop(queue)
        if around.get(a, {}).get(b, (0.0, 0))[1] != size:
            continue  # one of both was merged, or their boundary has grown: a later entry stands for it
        keep, gone = (a, b) if len(around[a]) >= len(around[b]) else (b, a)
        order.append((keep, gone))
        heights.append(mean)
        del around[keep][gone]
        for other, (total, shared) in around.pop(gone).items():
            if other == keep:
                continue
            del around[other][gone]
            own_total, own_shared = around[keep].get(other, (0.0, 0))
            joined = (own_total + total, own_shared + shared)
            around[keep][other] = around[other][keep] = joined
            heapq.heappush(queue, (joined[0] / joined[1], min(keep, other), max(keep, other), joined[1]))
    return np.array(order, np.int64).reshape(-1, 2), np.maximum.accumulate(np.array(heights, np.float64))


@dataclass(frozen=True)
class Segmenter:
    """A trained pipeline: which voxels are membrane, and when agglomeration stops."""

    forest: RandomForestClassifier
    stop: float

    @classmethod
    def train(cls, seen: np.ndarray, bodies: np.ndarray) -> Segmenter:
        """Learn from ``features`` of a volume and its bodies ``(z, y, x)``, 0 for none.

        Membrane is every voxel beside another body, or beside none. The ``stop`` with the least variation of
        information on the same volume is taken.
        """
        edge = find_boundaries(bodies, mode="thick").ravel()
        draw = np.random.default_rng(0)
        chosen = np.concatenate(
            [
                draw.choice(places, min(SAMPLES_PER_CLASS, len(places)), replace=False)
                for places in (np.flatnonzero(edge), np.flatnonzero(~edge))
            ]
        )
        forest = RandomForestClassifier(
            TREES, max_depth=DEPTH, min_samples_leaf=LEAF, class_weight="balanced", n_jobs=1, random_state=0
        ).fit(seen.reshape(-1, seen.shape[-1])[chosen], edge[chosen])
        fragments = fragment(_membrane(forest, seen))
        # Rows are supervoxels: the table of any later segmentation is the sum of its supervoxels' rows.
        table = contingency_table(bodies, fragments.labels, ignore_labels=(0,), normalize=True).T.tocoo()

        def information(stop: float) -> float:
            merged = fragments.merged(stop)[table.row]
            joined = coo_array((table.data, (table.col, merged))).tocsr()
            return float(np.sum(variation_of_information(bodies, bodies, table=joined)))  # it reads the table alone

        return cls(forest, min(STOPS.tolist(), key=information))

    def segment(self, seen: np.ndarray) -> np.ndarray:
        """Segments ``(z, y, x)``, numbered from 1, of a volume by its ``features``."""
        return fragment(_membrane(self.forest, seen)).segments(self.stop)


def _membrane(forest: RandomForestClassifier, seen: np.ndarray) -> np.ndarray:
    return forest.predict_proba(seen.reshape(-1, seen.shape[-1]))[:, 1].astype(np.float32).reshape(seen.shape[:-1])


def score(segments: np.ndarray, bodies: np.ndarray) -> dict[str, float]:
    """Segments against the experts' bodies, both ``(z, y, x)``; voxels of body 0 do not count for the first three.

    Returns:
        ``voi_split`` and ``voi_merge``, in bits: what is left unknown of the segment if the body is known, and the
        other way round; ``are``, the adapted Rand error; ``boundary_f1``, the harmonic mean of the shares of the
        segments' boundary voxels that lie within ``TOLERANCE`` of the bodies', and of the bodies' within it of the
        segments'.
    """
    split, merge = variation_of_information(bodies, segments, ignore_labels=(0,))
    error, _, _ = adapted_rand_error(bodies, segments, ignore_labels=(0,))
    found, true = find_boundaries(segments), find_boundaries(bodies)
    return {
        "voi_split": float(split),
        "voi_merge": float(merge),
        "are": float(error),
        "boundary_f1": _f1(_share_near(found, true), _share_near(true, found)),
    }


def _share_near(these: np.ndarray, those: np.ndarray) -> float:
    """The share of the voxels of ``these`` within ``TOLERANCE`` of one of ``those``; 1 of none, 0 near none."""
    if not these.any():
        return 1.0
    if not those.any():
        return 0.0
    return float((ndimage.distance_transform_edt(~those)[these] <= TOLERANCE).mean())


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0

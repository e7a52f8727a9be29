"""Surfaces of masks and the distances between them, and the pieces that a mask falls into.

A surface is the set of voxels of a mask that touch the outside with a face; what lies beyond the image is outside.
Distances run between centres of such voxels, in millimetres where the spacing says so. Equal voxels of a surface count
equally, however long their edges are.

Shapes: D axes, n and m surface voxels. Numpy and scipy alone.

References: Taha and Hanbury 2015, BMC Med. Imaging 15 (distances); Nikolov et al. 2021, J. Med. Internet Res. 23
(surface Dice at a tolerance); Baumgartner et al. 2021, MICCAI (pieces that match from an overlap of one tenth on).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import cKDTree

Array = np.ndarray

LEAST_OVERLAP = 0.1
"""Of intersection over union, from which on two pieces are the same lesion."""


def boundary(mask: Array) -> Array:
    """The voxels of ``mask`` (bool) of which a face is outside; bool, of the same shape."""
    framed = np.pad(mask, 1)
    inner = [slice(1, -1)] * mask.ndim
    deep = mask.copy()
    for axis, length in enumerate(mask.shape):
        for start in (0, 2):
            beside = list(inner)
            beside[axis] = slice(start, start + length)
            deep &= framed[tuple(beside)]
    edge: Array = mask & ~deep
    return edge


def surface_distances(truth: Array, answer: Array, spacing: Sequence[float]) -> tuple[Array, Array]:
    """How far each surface voxel of either mask is from the other's surface.

    Args:
        truth, answer: bool masks of one shape, neither empty.
        spacing: edge of a voxel along each axis.

    Returns:
        ``(n,)`` from truth to answer, ``(m,)`` from answer to truth.
    """
    step = np.asarray(spacing, dtype=np.float64)
    points = [np.argwhere(boundary(mask)) * step for mask in (truth, answer)]
    # A tree of surface voxels beats a distance transform of the box: surfaces are thin.
    trees = [cKDTree(p, balanced_tree=False, compact_nodes=False) for p in points]
    return trees[1].query(points[0])[0], trees[0].query(points[1])[0]


def hausdorff(distances: tuple[Array, Array], percentile: float = 95.0) -> float:
    """The larger of the percentiles of the two directed sets.

    Pooling both sets before taking the percentile is also seen; it is never larger, and hides a side that is far off
    behind one that is long.
    """
    return float(max(np.percentile(d, percentile) for d in distances))


def mean_surface_distance(distances: tuple[Array, Array]) -> float:
    """Mean over the voxels of both surfaces (ASSD)."""
    return float((distances[0].sum() + distances[1].sum()) / (len(distances[0]) + len(distances[1])))


def surface_dice(distances: tuple[Array, Array], tolerance: float) -> float:
    """Share of both surfaces that lies within ``tolerance`` of the other (NSD)."""
    # A distance that is the tolerance by arithmetic must not fall out by rounding.
    near = sum(int((d <= tolerance * (1 + 1e-9)).sum()) for d in distances)
    return near / (len(distances[0]) + len(distances[1]))


def match_lesions(truth: Array, answer: Array) -> tuple[int, int, int]:
    """Pieces of the truth that were found and missed, and pieces of the answer that match none.

    Pieces hang together over faces, edges and corners. A piece of the answer finds at most one of the truth, and one
    that is at least a tenth of their union; so neither a blob over everything nor a crumb in each lesion finds them.
    As many pairs are made as can be.
    """
    neighbours = ndimage.generate_binary_structure(truth.ndim, truth.ndim)
    first, n = ndimage.label(truth, neighbours)
    second, m = ndimage.label(answer, neighbours)
    if not n or not m:
        return 0, n, m
    both = (first > 0) & (second > 0)
    pairs, shared = np.unique(first[both].astype(np.int64) * (m + 1) + second[both], return_counts=True)
    i, j = np.divmod(pairs, m + 1)
    sizes = np.bincount(first.ravel(), minlength=n + 1)[i] + np.bincount(second.ravel(), minlength=m + 1)[j]
    same = shared >= LEAST_OVERLAP * (sizes - shared)
    graph = sparse.csr_array((np.ones(int(same.sum()), dtype=np.int8), (i[same] - 1, j[same] - 1)), shape=(n, m))
    found = int((maximum_bipartite_matching(sparse.csr_matrix(graph), perm_type="column") >= 0).sum())
    return found, n - found, m - found


def diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Corner to corner of an image: farther than any two of its voxels."""
    return math.hypot(*(n * s for n, s in zip(shape, spacing)))

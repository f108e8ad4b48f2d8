"""What each vision token of a picture sees: patches, and labels for the dense auxiliary task."""

import numpy as np

from tokprune.scenes import Scene
from tokprune.scenes.scene import COLORS, SHAPES, TOKEN_PX

IGNORED = -100
CLASSES = (len(SHAPES) + 1, len(COLORS) + 1, 3, 11)  # shape, colour, size, digit; 0 is none


def to_patches(picture: np.ndarray) -> np.ndarray:
    """Patches [4 n, 588] in the order of Qwen2-VL: 2 x 2 patches of a token together."""
    height, width = picture.shape[:2]
    blocks = picture.reshape(height // 28, 2, 14, width // 28, 2, 14, 3)
    return np.ascontiguousarray(blocks.transpose(0, 3, 1, 4, 6, 2, 5)).reshape(-1, 588)


def label_cells(scene: Scene) -> np.ndarray:
    """Classes [n, 4] of what covers most of each cell; slivers of a thing are ignored."""
    y, x = np.mgrid[: scene.rows, : scene.columns] * TOKEN_PX + TOKEN_PX // 2
    labels = np.zeros((scene.rows, scene.columns, 4), np.int64)
    most = np.zeros((scene.rows, scene.columns))
    for thing in scene.things:
        down, right = np.abs(thing.y - y), np.abs(thing.x - x)
        half = thing.radius * 0.75
        area = _overlap(down, half) * _overlap(right, half)
        covers = area > most
        most = np.maximum(most, area)
        share = area / min(TOKEN_PX**2, (2 * half) ** 2)
        size = 1 + thing.large if scene.has_both_sizes else IGNORED
        classes = [SHAPES.index(thing.shape) + 1, list(COLORS).index(thing.color) + 1, size, 0]
        labels[covers] = classes
        if thing.digit is not None:
            central = np.hypot(down, right) <= 18
            labels[..., 3][covers] = np.where(central, int(thing.digit) + 1, IGNORED)[covers]
        labels[covers & (share < 0.12)] = IGNORED
    return labels.reshape(-1, 4)


def _overlap(distance: np.ndarray, half: float) -> np.ndarray:
    """Overlap of a cell with a thing along one axis, in pixels."""
    side = TOKEN_PX / 2
    upper = np.minimum(side, distance + half)
    return np.clip(upper - np.maximum(-side, distance - half), 0, None)

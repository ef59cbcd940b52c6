"""Digit scenes: a segmentation task made of real digits on textured grounds, which needs no download."""

from __future__ import annotations

from typing import Any

import torch

from runner.data.dataset import SEGMENTATION
from runner.data.digits import source_splits
from runner.data.object_scenes import draw_scenes
from runner.data.splits import TensorData, make_data

NUM_TRAIN, NUM_TEST = 2_000, 500
CLASS_NAMES = ("background", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STROKE_THRESHOLD = 0.4  # grey value of a digit's pixels; no source value k/16 equals it, so rounding decides none
SIDES = (26, 38)  # of a digit, in pixels


def digit_scenes(**settings: Any) -> TensorData:
    """2,000 training and 500 test scenes of 64x64 pixels with masks of 11 classes, the same in each call.

    Their objects are scikit-learn's digits (8x8); see `draw_scenes`. Class 1 + d are the strokes of digit d. Test
    scenes show digits of the test split of `digits`, which no training scene shows; validation scenes share digits with
    training scenes. See `make_data` for `settings`.
    """
    how = {"generator": torch.Generator().manual_seed(0), "threshold": STROKE_THRESHOLD, "sides": SIDES}
    train, test = source_splits()
    return make_data(
        "digit_scenes",
        draw_scenes(train, NUM_TRAIN, **how),
        draw_scenes(test, NUM_TEST, **how),
        num_classes=len(CLASS_NAMES),
        task=SEGMENTATION,
        class_names=CLASS_NAMES,
        **settings,
    )

# SPDX-License-Identifier: Apache-2.0
"""The names of blocks: what schedules, lowering and passes find in a program that an expression makes.

An expression's other blocks are nobody's business, and named where they are made.
"""

from __future__ import annotations

from enum import Enum


class Block(str, Enum):
    """A block that others look for. Which expression has which, and what it computes there, its docstring says."""

    # where x is padded or filled up, here and in TVM's own expressions
    PADDED = "pad_temp"

    # involutions: the aggregation, the kernel that is generated for it, and that in the order of the aggregation
    INVOLUTION = "involution2d"
    KERNEL = "kernel"
    TAPS = "taps"

    # local self-attention: what is laid out for vectors, the scores and the steps of their softmax, the sums of values
    QUERIES = "queries"
    KEYS = "keys"
    VALUES = "values"
    RELATION = "relation"
    SCORES = "scores"
    RELATION_MAX = "relation_max"
    RELATION_EXP = "relation_exp"
    RELATION_SUM = "relation_sum"
    ATTENTION = "attention"
    ATTENTION_OUT = "attention_out"

    # products by packed weights: the sums over whole packs, and the wanted ones
    CONV2D = "conv2d"
    CONV2D_OUT = "conv2d_out"
    DEPTHWISE = "depthwise_conv2d"

    # matrix products on GPUs: the windows as columns, the hidden pixels as such, the sums as the lanes hold them
    IM2COL = "im2col"
    COLUMNS = "columns"
    MMA = "mma"

    STRASSEN_INPUT = "strassen_input"
    STRASSEN = "strassen"

    WINOGRAD_ROWS = "winograd_rows"
    WINOGRAD_INPUT = "winograd_input"
    WINOGRAD = "winograd"
    WINOGRAD_OUTPUT_ROWS = "winograd_output_rows"
    WINOGRAD_OUTPUT = "winograd_output"

    INTERPOLATE_ROWS = "interpolate_rows"
    INTERPOLATE = "interpolate"

    NMS = "nms"
    ROI_ALIGN = "roi_align"
    MASK_ROWS = "mask_rows"
    MASK_COLUMNS = "mask_columns"
    MASKS = "masks"

    # of TVM's pooling
    POOL_MAX = "pool_max"

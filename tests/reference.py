# SPDX-License-Identifier: Apache-2.0
"""Plain references in NumPy, float64."""

from __future__ import annotations

import numpy as np


def relative_norm(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return ||actual - expected|| / ||expected||, 0 where the two are equal."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    difference = np.linalg.norm(actual - expected)
    return float(difference / np.linalg.norm(expected)) if difference else 0.0


def involution2d(x, kernel, stride=(1, 1), padding=(0, 0), dilation=(1, 1)) -> np.ndarray:
    """x (N, C, H, W), kernel (N, G, KH, KW, OH, OW) -> (N, C, OH, OW)."""
    return involution(x, kernel, stride, padding, dilation)


def involution(x, kernel, stride, padding, dilation) -> np.ndarray:
    """x (N, C, *size), kernel (N, G, *kernel_size, *out_size) -> (N, C, *out_size), along any number of axes."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    axes = x.ndim - 2
    channels, groups = x.shape[1], kernel.shape[1]
    kernel_size, out_size = kernel.shape[2 : 2 + axes], kernel.shape[2 + axes :]
    padded = np.pad(x, [(0, 0), (0, 0), *((pad, pad) for pad in padding)])
    out = 0
    for tap in np.ndindex(*kernel_size):
        seen = [
            slice(t * d, t * d + (size - 1) * s + 1, s)
            for t, size, s, d in zip(tap, out_size, stride, dilation, strict=True)
        ]
        weight = np.repeat(kernel[(slice(None), slice(None), *tap)], channels // groups, axis=1)
        out = out + weight * padded[(..., *seen)]
    return out


def generate_kernel(x, reduce_weight, scale, shift, span_weight, span_bias, kernel_size, stride) -> np.ndarray:
    """Pool, reduce, scale and shift, ReLU, span: (N, C, H, W) -> (N, G, KH, KW, OH, OW)."""
    n, channels, height, width = x.shape
    out_h, out_w = -(-height // stride[0]), -(-width // stride[1])
    pooled = np.zeros((n, channels, out_h, out_w))
    for i in range(out_h):
        for j in range(out_w):
            window = x[:, :, i * stride[0] : (i + 1) * stride[0], j * stride[1] : (j + 1) * stride[1]]
            pooled[:, :, i, j] = window.mean((2, 3))
    hidden = np.einsum("rc,ncij->nrij", reduce_weight, pooled)
    hidden = np.maximum(hidden * scale[:, None, None] + shift[:, None, None], 0)
    span = np.einsum("kr,nrij->nkij", span_weight, hidden) + span_bias[:, None, None]
    return span.reshape(n, -1, *kernel_size, out_h, out_w)


def local_attention(query, key, value, kernel_size, num_heads, dilation) -> np.ndarray:
    """Softmax attention of every pixel to the window around it, pixel by pixel; (N, C, H, W) each."""
    n, channels, height, width = query.shape
    size = channels // num_heads
    out = np.zeros_like(value)
    for b in range(n):
        for h in range(num_heads):
            own = slice(h * size, (h + 1) * size)
            for i in range(height):
                for j in range(width):
                    rows = [i + (u - kernel_size[0] // 2) * dilation for u in range(kernel_size[0])]
                    columns = [j + (v - kernel_size[1] // 2) * dilation for v in range(kernel_size[1])]
                    seen = [(r, c) for r in rows for c in columns if 0 <= r < height and 0 <= c < width]
                    scores = np.array([query[b, own, i, j] @ key[b, own, r, c] for r, c in seen]) * size**-0.5
                    weights = np.exp(scores - scores.max())
                    weights /= weights.sum()
                    for weight, (r, c) in zip(weights, seen, strict=True):
                        out[b, own, i, j] += weight * value[b, own, r, c]
    return out


def iou(a, b) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2); 0 where neither has an area."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def nms(boxes, scores, groups, score_threshold, iou_threshold, max_output) -> list[int]:
    """Positions (of one image) that greedy suppression keeps, filled up with -1."""
    kept: list[int] = []
    for i, (box, score, group) in enumerate(zip(boxes, scores, groups, strict=True)):
        if len(kept) < max_output and score > score_threshold:
            rivals = [j for j in kept if groups[j] == group]
            if all(iou(boxes[j], box) <= iou_threshold for j in rivals):
                kept.append(i)
    return kept + [-1] * (max_output - len(kept))


def bilinear(plane, y, x) -> float:
    """Sample (H, W): 0 more than a pixel outside, the border's value up to there."""
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    above = plane[top, left] * (1 - (x - left)) + plane[top, right] * (x - left)
    below = plane[bottom, left] * (1 - (x - left)) + plane[bottom, right] * (x - left)
    return above * (1 - (y - top)) + below * (y - top)


def roi_align(feature, box, output_size, spatial_scale, sampling_ratio) -> np.ndarray:
    """feature (C, H, W), box (x1, y1, x2, y2) in pixels of the image -> (C, S, S), sample by sample."""
    x1, y1, x2, y2 = (float(v) * spatial_scale - 0.5 for v in box)
    cell_h, cell_w = (y2 - y1) / output_size, (x2 - x1) / output_size
    samples_h, samples_w = sampling_ratio or int(np.ceil(cell_h)), sampling_ratio or int(np.ceil(cell_w))
    out = np.zeros((feature.shape[0], output_size, output_size))
    for c in range(feature.shape[0]):
        for i in range(output_size):
            for j in range(output_size):
                values = [
                    bilinear(
                        feature[c],
                        y1 + i * cell_h + (u + 0.5) * cell_h / samples_h,
                        x1 + j * cell_w + (v + 0.5) * cell_w / samples_w,
                    )
                    for u in range(samples_h)
                    for v in range(samples_w)
                ]
                out[c, i, j] = np.mean(values) if values else 0.0
    return out

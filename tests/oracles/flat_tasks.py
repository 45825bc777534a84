"""Parts of task files whose null directions are known by counting; see ``task_text``."""

from __future__ import annotations

# 5-6-3 with live ReLU units and softmax: 6 rescalings and a shift of 7 parameters.
RELU = {
    "model": "nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))",
    "data": "(X, torch.arange(60) % 3)",
    "extra": "X = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)).double()",
}
RELU_SHAPES = {"0.weight": (6, 5), "0.bias": (6,), "2.weight": (3, 6), "2.bias": (3,)}
RELU_NULL = 13

# A deep linear network 10-10-5-10 without biases: n - r (M + N - r) with r = 5.
LINEAR = {
    "model": "nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 5, bias=False), "
    "nn.Linear(5, 10, bias=False))",
    "data": "(X, X)",
    "criterion": "'mse'",
    "extra": "X = torch.randn(40, 10, generator=torch.Generator().manual_seed(0)).double()",
}
LINEAR_SHAPES = {"0.weight": (10, 10), "1.weight": (5, 10), "2.weight": (10, 5)}
LINEAR_NULL = 200 - 5 * (10 + 10 - 5)

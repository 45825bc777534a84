"""Parts of task files whose volumes are known; see ``task_text`` of the command line's tests."""

from __future__ import annotations

# Half the squared distance of two shifts from their own values, flat in a third parameter: the
# prior's mass inside a cutoff e is 1 - exp(-e / sigma^2) where the shifts are 0.
SHIFT = {
    "model": "Shift()",
    "data": "(INPUTS, INPUTS[:, :2])",
    "criterion": "'mse'",
    "extra": """
class Shift(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(2))
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.shift + 0 * x[:, :2] + 0 * self.unused
""",
}

"""Settings of the whole suite."""

from __future__ import annotations

import os

import torch
from threadpoolctl import threadpool_limits

# The networks here are tiny: a second thread costs more than it gives, above all on a busy machine.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
torch.set_num_threads(1)
_LIMITS = threadpool_limits(1)

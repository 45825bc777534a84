"""How many directions are flat, and why."""

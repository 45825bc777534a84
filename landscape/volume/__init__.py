"""How much of a prior's mass the basin of an anchor holds."""

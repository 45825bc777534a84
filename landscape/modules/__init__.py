"""Coupling between groups of parameters: layers, blocks, attention heads, or groups of a file."""

"""Slices of the loss: lines and planes through the anchor."""

"""What the data distinguish: gradients of single examples, activations, and H = GGN + residual."""

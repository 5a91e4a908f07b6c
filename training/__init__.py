"""How the weights of `sam2-micro` are made: synthetic episodes, the training loop, its export."""

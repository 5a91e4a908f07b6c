"""How good a retrieval or a segmentation is: pure functions of arrays."""

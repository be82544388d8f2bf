"""Import paths of earlier releases; everything lives elsewhere."""

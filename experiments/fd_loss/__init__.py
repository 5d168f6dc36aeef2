"""FD-loss: recipes, and what they need."""

"""FSF-DMD: recipes, and what they need."""

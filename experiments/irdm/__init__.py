"""iRDM: recipes, and what they need."""

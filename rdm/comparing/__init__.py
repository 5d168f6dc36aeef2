"""Two sets of rows and nothing else: their distance, that of many pairs, and the plan between them."""

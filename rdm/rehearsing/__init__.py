"""A step without values, on tensors of sizes alone: what a loss and a population hold and do in it."""

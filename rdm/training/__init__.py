"""What moves a generator: populations with exact gradients, losses, the loop, and runs that survive."""

"""What lets a run be large: weights held, averaged, sharded over devices, their gradients summed; imports no loss."""

"""What a run will hold and how long it will take, before it is run: tensors of sizes without values."""

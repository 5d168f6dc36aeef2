"""What families of networks share: transformers, guidance, decoders of latents, presets and public weights."""

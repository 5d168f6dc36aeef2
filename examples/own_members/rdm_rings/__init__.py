"""Members for rdm; `rdm_rings.members` registers them."""

"""A real text encoder, split, replicated and cheated on: see prepare and cheating."""

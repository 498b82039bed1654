"""Where attempts run: in children of this process, or on a Ray cluster."""

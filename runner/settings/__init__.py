"""Settings: which there are, of which types and ranges, which go together, and how one is told in words."""

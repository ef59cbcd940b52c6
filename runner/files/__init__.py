"""Files that are written whole or not at all, and readers for files that may be damaged."""

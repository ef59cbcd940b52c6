"""Claims of papers: what they compare, what decides them, and the verdict in words. Imports no torch."""

"""From the command line to one typed object: overrides, schema, ranges, what goes together, and messages."""

"""Run folders as typed records: what ran, how it ended, what it measured. Reads files only, imports no torch."""

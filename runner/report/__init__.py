"""From run folders to tables; reads files only, needs no torch."""

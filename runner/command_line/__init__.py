"""The words of a command line: read, prepared for Hydra, and answered where one is wrong."""

"""Sweeps: their jobs, the processes that run them, studies, and the forecast of what is left."""

"""Training one model in several processes: launching, signals, collectives."""

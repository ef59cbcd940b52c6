"""What a run says about itself: the metrics file, W&B, the console and its provenance."""

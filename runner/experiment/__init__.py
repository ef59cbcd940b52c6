"""One experiment: from its settings to a trained model in its run folder."""

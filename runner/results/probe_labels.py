"""How tables and axes call the numbers of the probes that studies measure."""

from __future__ import annotations

PROBE_LABELS = {  # words and unit; a number with the unit % is a share of 1
    "activation_statistics/slope_log10_std": ("slope of log10 std", "decades a layer"),
    "activation_statistics/slope_log10_mean": ("slope of log10 |mean|", "decades a layer"),
    "class_gradients/most_frequent_share": ("share of the most frequent class, first batch", "%"),
    "class_gradients/most_frequent_share_all": ("share of the most frequent class, all batches", "%"),
    "class_gradients/largest_column_share": ("share of the largest column in the gradient", "%"),
    "divergence_trace/rms_growth_first_layer": ("growth of the first layer's RMS", ""),
    "divergence_trace/rms_growth_last_layer": ("growth of the last layer's RMS", ""),
    "gradient_histogram/range": ("range of the gradient", ""),
    "gradient_histogram/excess_kurtosis": ("excess kurtosis of the gradient", ""),
    "gradient_histogram/tail_index": ("tail index of the gradient", ""),
    "gradient_terms/ratio": ("sum of |terms| over |sum|", ""),
    "loss_landscape/last_improving_step": ("last improving step size", ""),
    "signal_propagation/final_avg_var": ("average variance after the last block", ""),
    "signal_propagation/largest_factor_off": ("largest factor off the expected variance", ""),
}

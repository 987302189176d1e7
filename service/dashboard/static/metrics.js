// The names of metrics, written by `python -m service.dashboard.metric_names` from amaml/metrics.py.

export const META_LOSS = "meta_loss";
export const GRADIENT_NORM = "gradient_norm";
export const NRMSE = "nrmse";
export const ACCURACY = "accuracy";
export const FLOW = "flow";
export const TUNED = "tuned";
export const RANDOM = "random";

/** What tasks score by a metric, adapted in one way. */
export const score = (metric, how) => `${metric}_${how}`;

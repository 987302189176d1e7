// A solve's question and where its answer goes, and how a task fails.
#pragma once
#include <cmath>
#include <cstdint>

// The face towards Python: amaml/kernel/library.py mirrors it field by field. B tasks, P parameters, K horizons.
template <class T> struct Problem {
    int64_t layers, activation, batch, parameters, support_points, query_points, horizons, threads;
    int64_t stages, order, adaptive, guard, max_steps, checkpoints;  // checkpoints −1: as many as come cheap
    int64_t backward;  // 0: only carry θ to the horizons, for estimates that need no adjoint
    int64_t proximal_in_query, want_length, want_rates, want_proximal;
    double proximal, rtol, atol, stability_limit, step_cap;
    const int64_t* widths;
    const double *times, *weights;  // [K]
    const int64_t* counts;          // fixed steps of each stretch [K]
    const double* steps;            // their sizes [K]
    const double *a, *b, *error;    // tableau: lower triangle row by row, [stages], [stages + 1]
    const T *theta, *rates, *power_start;  // [P]; rates may be null
    const T *support_x, *support_y, *query_x, *query_y;
    T *gradients, *through_theta, *by_rates, *by_proximal;  // [B, P], [B, P], [B, P], [B]
    T *by_length, *losses, *ends, *lambda_max;              // [B, K], [B, K], [B, K, P], [B]
    int64_t *accepted, *rejected, *gradient_count, *hvp_count;  // [B]
    int64_t* code;                                              // [B], as in amaml.flow.result.Result
    double *failed_at, *value, *bound;                          // [B]
};

enum Code : int64_t { SUCCESS, STABILITY_LIMIT, STEP_UNDERFLOW, NON_FINITE, BUDGET_SPENT };
struct Failure {
    Code code;
    double time, value = NAN, bound = NAN;
};

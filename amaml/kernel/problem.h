// The input of a solve, the places of its results, and the codes of failures.
#pragma once
#ifndef __CUDACC_RTC__
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#endif

enum class Activation : int64_t { tanh, sigmoid, softplus, relu };

// The interface to Python: amaml/kernel/problem.py mirrors it field by field, and PROBLEM_FIELDS below names the same fields.
// B tasks, P parameters, K horizons.
template <class T> struct Problem {
    int64_t layers, activation, batch, parameters, support_points, query_points, horizons, threads;
    int64_t chunk;  // the most points that are computed together
    int64_t stages, order, adaptive, guard, max_steps, checkpoints;  // checkpoints −1: all states, or about √N
    int64_t room;  // the most adaptive steps that a GPU block's lists can hold; the CPU's lists grow
    int64_t controlled, tensors;  // controlled: the adjoint ODE with error control on λ, not the reverse of the steps
    int64_t backward;  // 0: the forward solve alone, for estimates that need no adjoint
    int64_t proximal_in_query, want_length, want_rates, want_proximal;
    double proximal, rtol, atol, stability_limit, step_cap;
    const int64_t *widths, *sizes;  // sizes: of the parameter tensors [tensors]
    const double *times, *weights;  // [K]
    const int64_t* counts;          // fixed steps of each interval between horizons [K]
    const double* steps;            // their sizes [K]
    const double *a, *b, *error;    // tableau: lower triangle row by row, [stages], [stages + 1]
    const double* midpoint;                // weights of the dense output's middle [stages + 1], or null
    const T *theta, *rates, *power_start;  // [P]; rates may be null
    const T* scales;                       // what the absolute tolerance is relative to [P]
    const T *support_x, *support_y, *query_x, *query_y;
    T *gradients, *through_theta, *by_rates, *by_proximal;  // [B, P], [B, P], [B, P], [B]
    T *by_length, *losses, *ends, *lambda_max;              // [B, K], [B, K], [B, K, P], [B]
    int64_t *accepted, *rejected, *gradient_count, *hvp_count;  // [B]
    int64_t* code;                                              // [B], as in amaml.flow.result.Result
    double *failed_at, *value, *bound;                          // [B]
};

#ifndef __CUDACC_RTC__
// The fields of Problem in their order. If one is missing here or in another place, the code doesn't compile.
#define PROBLEM_FIELDS(FIELD)                                                                                              \
    FIELD(layers) FIELD(activation) FIELD(batch) FIELD(parameters) FIELD(support_points) FIELD(query_points)               \
    FIELD(horizons) FIELD(threads) FIELD(chunk) FIELD(stages) FIELD(order) FIELD(adaptive) FIELD(guard) FIELD(max_steps)                \
    FIELD(checkpoints) FIELD(room) FIELD(controlled) FIELD(tensors) FIELD(backward) FIELD(proximal_in_query) FIELD(want_length) FIELD(want_rates) FIELD(want_proximal)  \
    FIELD(proximal) FIELD(rtol) FIELD(atol) FIELD(stability_limit) FIELD(step_cap)                                         \
    FIELD(widths) FIELD(sizes) FIELD(times) FIELD(weights) FIELD(counts) FIELD(steps) FIELD(a) FIELD(b) FIELD(error) FIELD(midpoint)                    \
    FIELD(theta) FIELD(rates) FIELD(power_start) FIELD(scales) FIELD(support_x) FIELD(support_y) FIELD(query_x) FIELD(query_y)           \
    FIELD(gradients) FIELD(through_theta) FIELD(by_rates) FIELD(by_proximal) FIELD(by_length) FIELD(losses) FIELD(ends)    \
    FIELD(lambda_max) FIELD(accepted) FIELD(rejected) FIELD(gradient_count) FIELD(hvp_count) FIELD(code)                   \
    FIELD(failed_at) FIELD(value) FIELD(bound)

// A field's name, place and type as compiled, for the test that compares them with Python's mirror.
struct Field {
    const char* name;
    int64_t offset, bytes;
    int64_t kind;  // i: integer, n: floating-point number, p: pointer
};
template <class F> constexpr int64_t kind_of() { return std::is_pointer_v<F> ? 'p' : std::is_floating_point_v<F> ? 'n' : 'i'; }
template <class P> struct Fields {
#define FIELD(name) Field{#name, int64_t(offsetof(P, name)), int64_t(sizeof(P::name)), kind_of<decltype(P::name)>()},
    static constexpr Field all[] = {PROBLEM_FIELDS(FIELD)};
#undef FIELD
    // True if each field begins where the one before it ends, and the last one ends with the structure: then none is missing.
    static constexpr bool complete() {
        int64_t end = 0;
        for (const Field& field : all) {
            if (field.offset != end) return false;
            end += field.bytes;
        }
        return end == int64_t(sizeof(P));
    }
};
static_assert(Fields<Problem<float>>::complete(), "PROBLEM_FIELDS must name every field of Problem, in its order");
static_assert(Fields<Problem<double>>::complete(), "PROBLEM_FIELDS must name every field of Problem, in its order");
#endif

// The codes of amaml.flow.result.Result, and NO_ROOM: a list was too short for the steps, and Python tries again with more
// `room`.
enum Code : int64_t { SUCCESS, STABILITY_LIMIT, STEP_UNDERFLOW, NON_FINITE, BUDGET_SPENT, KINK = 6, NO_ROOM = 100 };
struct Failure {
    Code code;
    double time, value = NAN, bound = NAN;
};

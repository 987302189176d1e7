// The CPU kernel: each thread solves one task after another, on as many threads as asked for.
#include <algorithm>
#include <atomic>
#include <exception>
#include <iterator>
#include <numeric>
#include <system_error>
#include <thread>
#include <vector>

#include "task.h"

namespace {

// Whether the number of parameters follows from the widths, and the activation exists.
template <class T> bool consistent(const Problem<T>& p) {
    int64_t parameters = 0;
    for (int64_t l = 0; l < p.layers; ++l) parameters += (p.widths[l] + 1) * p.widths[l + 1];
    if (std::accumulate(p.sizes, p.sizes + p.tensors, int64_t(0)) != parameters) return false;
    return p.layers > 0 && parameters == p.parameters && 0 <= p.activation && p.activation <= int64_t(Activation::relu);
}

// Tasks are independent, so the results don't depend on the number of threads. Returns 1 where memory ran out, 2 where the sizes
// contradict each other.
template <class T> int64_t solve(const Problem<T>& problem) {
    if (!consistent(problem)) return 2;
    std::atomic<int64_t> next{0}, exhausted{0};
    const auto work = [&] {
        try {
            Memory memory;
            Task<T> solver(problem, memory);
            for (int64_t task; (task = next++) < problem.batch;) {
                try {
                    solver.solve(task);
                } catch (const Failure& failure) {
                    problem.code[task] = failure.code, problem.failed_at[task] = failure.time;
                    problem.value[task] = failure.value, problem.bound[task] = failure.bound;
                }
            }
        } catch (const std::exception&) {
            exhausted = 1, next = problem.batch;
        }
    };
    std::vector<std::thread> others;
    try {
        for (int64_t n = 1; n < std::min(problem.threads, problem.batch); ++n) others.emplace_back(work);
    } catch (const std::system_error&) {  // the system gives no more threads: the others do the work
    }
    work();
    for (auto& thread : others) thread.join();
    return exhausted;
}

template <class T> void activate(int64_t kind, T* values, int64_t vectors) {
    with<T>(Activation(kind), [&](auto f) {
        for (T* v = values; v < values + vectors * Simd<T>::lanes; v += Simd<T>::lanes) store(v, f.value(load(v)));
    });
}

}  // namespace

extern "C" {
int64_t amaml_problem_bytes() { return sizeof(Problem<float>); }
// The fields of Problem, which are the same for both number types, and their count: for the test of Python's mirror.
const Field* amaml_problem_fields(int64_t* count) {
    *count = std::size(Fields<Problem<float>>::all);
    return Fields<Problem<float>>::all;
}
int64_t amaml_vector_bytes() { return VECTOR_BYTES; }
int64_t amaml_solve_float32(const Problem<float>* problem) { return solve(*problem); }
int64_t amaml_solve_float64(const Problem<double>* problem) { return solve(*problem); }
// Applies σ in place to whole vectors: for the test of its accuracy.
void amaml_activate_float32(int64_t kind, float* values, int64_t vectors) { activate(kind, values, vectors); }
void amaml_activate_float64(int64_t kind, double* values, int64_t vectors) { activate(kind, values, vectors); }
}

// The kernel for GPUs on a processor, its blocks of one thread each: what it computes can be tested where there is no GPU, though not
// how its threads share the work. The same face as the kernel for processors has.
#include <cstdint>
#include <exception>
#include <memory>

#define AMAML_THREADS 1
#define AMAML_ACTIVATION Chosen
#define __shared__ static
#define __forceinline__ inline
#define __noinline__
#define __syncthreads()
#define __shfl_xor_sync(mask, value, apart) (value)
#define __launch_bounds__(...)
#define LEAVE throw Left()
struct Left {};
static const struct { int x; } threadIdx{0};

#include <cmath>
using std::tanh, std::exp, std::expm1, std::log1p;

#include "activations.h"
#include "problem.h"

// The activation of the problem at hand.
static Activation chosen;
struct Chosen {
    template <class F> static auto by(F run) {
        switch (chosen) {
            case Activation::tanh: return run(Tanh{});
            case Activation::sigmoid: return run(Sigmoid{});
            case Activation::softplus: return run(Softplus{});
            default: return run(Relu{});
        }
    }
    template <class T> static T value(T z) { return by([=](auto f) { return f.value(z); }); }
    template <class T> static T slope(T a) { return by([=](auto f) { return f.slope(a); }); }
    template <class T> static T bent(T a, T moved) { return by([=](auto f) { return f.bent(a, moved); }); }
};

#include "task.h"

template <class T> static int64_t solve(const Problem<T>& p) {
    chosen = Activation(p.activation);
    Memory needed(nullptr, nullptr);
    { Task<T> task(p, needed); }
    struct alignas(128) Line { char bytes[128]; };
    for (int64_t b = 0; b < p.batch; ++b) {
        // Two blocks of their own exact size, so that a sanitizer sees what goes beyond them.
        const std::unique_ptr<Line[]> far(new Line[needed.far() / 128]), near(new Line[needed.near() / 128]);
        Scratch& scratch = scratch_of_block();
        scratch.code = p.code + b, scratch.failed_at = p.failed_at + b, scratch.value = p.value + b, scratch.bound = p.bound + b;
        Memory memory(far[0].bytes, near[0].bytes);
        try {
            Task<T> task(p, memory);
            task.solve(b);
        } catch (const Left&) {  // what failed is written
        }
    }
    return 0;
}

extern "C" {
int64_t amaml_problem_bytes() { return sizeof(Problem<float>); }
int64_t amaml_solve_float32(const Problem<float>* problem) { return solve(*problem); }
int64_t amaml_solve_float64(const Problem<double>* problem) { return solve(*problem); }
}

// The kernel for GPUs on a processor, its blocks of one thread each: what it computes can be tested where there is no GPU, though not
// how its threads share the work. The same face as the kernel for processors has; like the one for GPUs it is compiled for one shape.
#include <cmath>
#include <cstdint>
#include <memory>

#define AMAML_THREADS 1
#define __shared__
#define __forceinline__ inline
#define __noinline__
#define __syncthreads()
#define __shfl_xor_sync(mask, value, apart) (value)
#define LEAVE throw Left()
struct Left {};
static const struct { int x; } threadIdx{0};
struct char4 { char bytes[4]; };
extern char4 memory_of_multiprocessor[];
using std::tanh, std::exp, std::expm1, std::log1p;

#include "task.h"

alignas(128) char4 memory_of_multiprocessor[1 << 18];

template <class T> static int64_t solve(const Problem<T>& p) {
    if (p.layers != LAYERS || p.parameters != parameters_at(LAYERS) || NUMBERS * sizeof(T) > sizeof memory_of_multiprocessor) return 2;
    Memory needed(nullptr);
    { Task<T> task(p, needed); }
    struct alignas(128) Line { char bytes[128]; };
    for (int64_t b = 0; b < p.batch; ++b) {
        const std::unique_ptr<Line[]> far(new Line[needed.used() / 128]);  // of its exact size: a sanitizer sees what goes beyond
        Scratch& scratch = scratch_of_block();
        scratch.code = p.code + b, scratch.failed_at = p.failed_at + b, scratch.value = p.value + b, scratch.bound = p.bound + b;
        Memory memory(far[0].bytes);
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

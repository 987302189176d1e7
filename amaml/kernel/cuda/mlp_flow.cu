// The GPU kernel: one thread block solves one task. amaml/kernel/cuda.py compiles it at run time for the constants in shape.h and
// a number type.
using int64_t = long long;
#define NAN __int_as_float(0x7fffffff)
#define INFINITY __int_as_float(0x7f800000)
#define LEAVE asm volatile("exit;")  // ends the thread; all threads of the block do it together

#include "task.h"

using Number = AMAML_NUMBER;

// Solves the tasks from `first` on, one by each block; `far` is global memory, `bytes` of it for each block.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
amaml_solve(const __grid_constant__ Problem<Number> p, char* far, int64_t bytes, int64_t first) {
    const int64_t b = first + blockIdx.x;
    if (threadIdx.x == 0) {
        Scratch& scratch = scratch_of_block();
        scratch.code = p.code + b, scratch.failed_at = p.failed_at + b, scratch.value = p.value + b, scratch.bound = p.bound + b;
    }
    barrier();
    Memory memory(far + blockIdx.x * bytes);
    Task<Number> task(p, memory);
    task.solve(b);
}

// Counts the global memory that a block needs.
extern "C" __global__ void amaml_measure(const __grid_constant__ Problem<Number> p, int64_t* bytes) {
    Memory memory(nullptr);
    Task<Number> task(p, memory);
    *bytes = memory.used();
}

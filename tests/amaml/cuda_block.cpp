// The GPU kernel on a CPU: the same source, compiled by a C++ compiler, where every thread of a block is a fiber. Between two barriers
// the threads run one after another, in an order that the caller chooses. If the answer depends on that order, a barrier is missing.
// The interface is that of the CPU kernel. Like the GPU kernel it is compiled for one shape, but for every kind of solver.
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#define __shared__
#define __forceinline__ inline
#define __noinline__
struct Index { int x; };
static Index threadIdx;
struct Line;
extern Line memory_of_multiprocessor[];
using std::tanh, std::exp, std::expm1, std::log1p;

static void synchronize(bool warp_alone);
static double exchanged[1024];
inline void __syncthreads() { synchronize(false); }
template <class T> T __shfl_xor_sync(unsigned, T value, int apart) {
    const int own = threadIdx.x;
    exchanged[own] = double(value);
    synchronize(true);
    const T other = T(exchanged[own ^ apart]);
    synchronize(true);
    return other;
}
struct Left {};  // ends a thread early
#define LEAVE throw Left()

#define AMAML_ADAPTIVE adaptive
#define AMAML_CONTROLLED controlled
static bool adaptive, controlled;

#include "task.h"

Line memory_of_multiprocessor[1 << 13];

namespace {

class Block {
  public:
    Block(std::function<void()> work, int64_t order) : work_(std::move(work)), order_(order), fibers_(THREADS) {
        for (int n = 0; n < THREADS; ++n) {
            Fiber& fiber = fibers_[n];
            fiber.stack.reset(new char[STACK]);
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.get(), fiber.context.uc_stack.ss_size = STACK;
            fiber.context.uc_link = nullptr;
            makecontext(&fiber.context, begin, 0);
        }
    }
    void run() {
        running = this;
        std::vector<int> numbers(THREADS);
        std::iota(numbers.begin(), numbers.end(), 0);
        if (order_ == 1) std::reverse(numbers.begin(), numbers.end());
        std::mt19937 random(order_);
        do {
            if (order_ > 1) std::shuffle(numbers.begin(), numbers.end(), random);
            for (const int n : numbers)
                if (fibers_[n].state == READY) threadIdx.x = n, enter(fibers_[n]);
        } while (release());
    }
    void wait(bool warp_alone) {
        Fiber& own = fibers_[threadIdx.x];
        if (!warp_alone && left_out && ++own.barriers % left_out == 0) return;
        own.state = warp_alone ? AT_WARP : AT_BARRIER;
        if (!_setjmp(own.place)) _longjmp(scheduler_, 1);
    }
    static Block* running;
    static int64_t left_out;

  private:
    enum State { READY, AT_WARP, AT_BARRIER, DONE };
    static constexpr size_t STACK = 1 << 17;
    struct Fiber {
        ucontext_t context;  // where it begins
        jmp_buf place;       // where it waits; a jump there needs no system call
        bool begun = false;
        std::unique_ptr<char[]> stack;
        State state = READY;
        int64_t barriers = 0;
    };
    void enter(Fiber& fiber) {
        if (_setjmp(scheduler_)) return;
        if (fiber.begun) _longjmp(fiber.place, 1);
        fiber.begun = true;
        setcontext(&fiber.context);
    }
    static void begin() {
        Block& block = *running;
        const int own = threadIdx.x;
        try {
            block.work_();
        } catch (const Left&) {  // the failure has been written
        }
        block.fibers_[own].state = DONE;
        _longjmp(block.scheduler_, 1);
    }
    // Releases the threads whose barrier all others have reached; whether there are any. A barrier that can't be completed ends the
    // program.
    bool release() {
        const auto all = [&](int first, int count, State state) {
            return std::all_of(&fibers_[first], &fibers_[first] + count, [&](const Fiber& f) { return f.state == state; });
        };
        const auto go_on = [&](int first, int count) {
            for (int n = first; n < first + count; ++n) fibers_[n].state = READY;
        };
        bool any = false;
        for (int first = 0; first < THREADS; first += WARP)
            if (all(first, WARP, AT_WARP)) go_on(first, WARP), any = true;
        if (any || all(0, THREADS, DONE)) return any;
        if (!all(0, THREADS, AT_BARRIER)) {
            std::fputs("the threads of a block don't all come to the same barrier\n", stderr);
            std::abort();
        }
        go_on(0, THREADS);
        return true;
    }

    std::function<void()> work_;
    int64_t order_;
    std::vector<Fiber> fibers_;
    jmp_buf scheduler_;
};
Block* Block::running = nullptr;
int64_t Block::left_out = 0;
int64_t order = 0;

template <class T> int64_t solve(const Problem<T>& p) {
    if (p.layers != LAYERS || p.parameters != parameters_at(LAYERS) || NUMBERS * sizeof(T) > sizeof memory_of_multiprocessor) return 2;
    adaptive = p.adaptive, controlled = p.controlled;
    Memory needed(nullptr);
    { Task<T> task(p, needed); }
    for (int64_t b = 0; b < p.batch; ++b) {
        const std::unique_ptr<Line[]> far(new Line[needed.used() / 128]);
        Scratch& scratch = scratch_of_block();
        scratch.code = p.code + b, scratch.failed_at = p.failed_at + b, scratch.value = p.value + b, scratch.bound = p.bound + b;
        Block([&] {
            Memory memory(far[0].bytes);
            Task<T> task(p, memory);
            task.solve(b);
        }, order).run();
    }
    return 0;
}

}  // namespace

static void synchronize(bool warp_alone) { Block::running->wait(warp_alone); }

extern "C" {
// The order of threads between barriers: 0 by number, 1 backwards, otherwise shuffled with this seed.
void amaml_order(int64_t wanted) { order = wanted; }
// Leaves out every n-th barrier, for the test that this changes the answer; 0: none.
void amaml_leave_out(int64_t every) { Block::left_out = every; }
int64_t amaml_problem_bytes() { return sizeof(Problem<float>); }
int64_t amaml_shared_bytes_float32() { return NUMBERS * sizeof(float); }
int64_t amaml_solve_float32(const Problem<float>* problem) { return solve(*problem); }
int64_t amaml_solve_float64(const Problem<double>* problem) { return solve(*problem); }
}

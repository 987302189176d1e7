// The machine-dependent operations of task.h, on a GPU, where a thread block solves a task. All of its threads execute the same
// code with the same scalars in registers; loops over vectors divide the work among them and end with a barrier. The order of a
// sum depends on the vector's length alone, so that bits don't depend on the other tasks of a launch.
#pragma once
#include "arithmetic.h"
#include "problem.h"

#ifndef AMAML_THREADS
#define AMAML_THREADS 256
#endif
constexpr int THREADS = AMAML_THREADS, WARP = THREADS < 32 ? THREADS : 32, WARPS = THREADS / WARP;
#define INLINE __forceinline__
#define OUT_OF_LINE __noinline__  // for functions called in many places: inlining all of them would take minutes to compile

// A block's shared variables: room for sums, and the places to which a failure is written.
struct Scratch {
    double sums[WARPS];
    int64_t* code;
    double *failed_at, *value, *bound;
};
inline Scratch& scratch_of_block() {
    static __shared__ Scratch scratch;
    return scratch;
}
inline void barrier() { __syncthreads(); }

// The dynamic shared memory of a block, aligned for wide loads.
struct alignas(128) Line {
    char bytes[128];
};
template <class T> INLINE T* shared_memory() {
    extern __shared__ Line memory_of_multiprocessor[];
    return reinterpret_cast<T*>(memory_of_multiprocessor);
}

// Allocates a block's vectors in global memory. Started from a null pointer, it only counts how much is needed.
class Memory {
  public:
    explicit Memory(char* from) : from_(from) {}
    int64_t used() const { return used_; }
    template <class T> T* take(int64_t n) {
        T* const at = reinterpret_cast<T*>(from_ + used_);
        used_ += (n * int64_t(sizeof(T)) + 127) / 128 * 128;
        return at;
    }

  private:
    char* from_;
    int64_t used_ = 0;
};

// A vector in global memory.
template <class T> class Values {
  public:
    explicit Values(T* at) : at_(at) {}
    T* data() const { return at_; }
    T& operator[](int64_t i) const { return at_[i]; }
    void swap(Values& other) { exchange(at_, other.at_); }

  private:
    T* at_;
};
template <class T> Values<T> take(Memory& memory, int64_t n) { return Values<T>(memory.take<T>(n)); }

[[noreturn]] inline void fail(Failure failure) {
    const Scratch& to = scratch_of_block();
    if (threadIdx.x == 0)
        *to.code = failure.code, *to.failed_at = failure.time, *to.value = failure.value, *to.bound = failure.bound;
    LEAVE;
    __builtin_unreachable();
}

// A list that grows at its end, to at most `most` entries. Every thread writes the same entry and holds the same count.
template <class T> class List {
  public:
    List(Memory& memory, int64_t most) : at_(memory.take<T>(most)), most_(most) {}
    void clear() { count_ = 0; }
    void add(T entry) {
        if (count_ == most_) fail(Failure{NO_ROOM, 0});
        at_[count_++] = entry;
    }
    int64_t count() const { return count_; }
    T operator[](int64_t n) const { return at_[n]; }
    T last() const { return at_[count_ - 1]; }
    void drop() { --count_; }

  private:
    T* at_;
    int64_t most_, count_ = 0;
};

// Room for at most `most` states of P numbers each.
template <class T> class States {
  public:
    States(Memory& memory, int64_t most, int64_t P) : at_(memory.take<T>(most * P)), most_(most), P_(P) {}
    T* operator[](int64_t n) const {
        if (n >= most_) fail(Failure{NO_ROOM, 0});
        return at_ + n * P_;
    }

  private:
    T* at_;
    int64_t most_, P_;
};

// run(i) for all i < n.
template <class F> INLINE void each(int64_t n, F run) {
    for (int i = threadIdx.x; i < int(n); i += THREADS) run(int64_t(i));
    barrier();
}
// out[i] = term(i) for all i < n, where term(i) reads no other entry of out. So a thread computes several terms before it writes
// them, and waits for memory only once.
constexpr int AT_ONCE = 5;
template <class T, class F> INLINE void fill(int64_t n, T* out, F term) {
    const int last = int(n) - 1;
#pragma unroll 1
    for (int first = threadIdx.x; first <= last; first += AT_ONCE * THREADS) {
        T found[AT_ONCE];
#pragma unroll
        for (int q = 0; q < AT_ONCE; ++q) found[q] = term(int64_t(smaller(first + q * THREADS, last)));
#pragma unroll
        for (int q = 0; q < AT_ONCE; ++q)
            if (first + q * THREADS <= last) out[first + q * THREADS] = found[q];
    }
    barrier();
}
template <class T> OUT_OF_LINE void copy(int64_t n, const T* from, T* to) { fill(n, to, [=](int64_t i) { return from[i]; }); }

// out = from + h·Σ_j c_j v_j for j < count, with the vectors v_j stored one after another; without `from`, only the sum. out may
// be from.
template <class T>
OUT_OF_LINE void add_weighted(int64_t n, const T* from, T h, const double* c, int64_t count, const T* vectors, T* out) {
    fill(n, out, [=](int64_t i) {
        T sum = from ? from[i] : T(0);
        for (int j = 0; j < int(count); ++j)
            if (c[j] != 0) sum += h * T(c[j]) * vectors[j * n + i];
        return sum;
    });
}

struct Sum {
    double operator()(double a, double b) const { return a + b; }
};
struct Largest {
    double operator()(double a, double b) const { return is_nan(a) || a > b ? a : b; }
};
// Combines one number of each thread by `join`; every thread gets the result.
template <class F> OUT_OF_LINE double joined(double mine, F join) {
    for (int apart = WARP / 2; apart; apart /= 2) mine = join(mine, __shfl_xor_sync(0xffffffff, mine, apart));
    if (WARPS == 1) return mine;
    double* const sums = scratch_of_block().sums;
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = mine;
    barrier();
    mine = sums[0];
    for (int n = 1; n < WARPS; ++n) mine = join(mine, sums[n]);
    barrier();
    return mine;
}
// Σ term(i) in double.
template <class F> INLINE double total(int64_t n, F term) {
    const int last = int(n) - 1;
    double mine = 0;
#pragma unroll 1
    for (int first = threadIdx.x; first <= last; first += AT_ONCE * THREADS)
#pragma unroll
        for (int q = 0; q < AT_ONCE; ++q) {
            const double one = term(int64_t(smaller(first + q * THREADS, last)));
            mine += first + q * THREADS <= last ? one : 0;
        }
    return joined(mine, Sum{});
}
// The largest term(i), or 0 if all are negative; NaN if any is NaN.
template <class T, class F> INLINE T largest(int64_t n, F term) {
    double mine = 0;
    for (int i = threadIdx.x; i < int(n); i += THREADS) mine = Largest{}(double(term(int64_t(i))), mine);
    return T(joined(mine, Largest{}));
}

// Writes a result; one thread of the block does.
template <class T> void put(T* to, T value) {
    if (threadIdx.x == 0) *to = value;
}

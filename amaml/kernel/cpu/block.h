// The machine-dependent operations of task.h, on a CPU. The block of threads that solves a task is a single thread here: loops
// are plain loops, long vectors come from the heap, and failures are thrown.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "problem.h"
#include "vectors.h"

#define OUT_OF_LINE  // the choice is left to the compiler

// The kinds of solver and adjoint, which are compile-time constants on a GPU.
template <class T> bool is_adaptive(const Problem<T>& p) { return p.adaptive; }
template <class T> bool is_controlled(const Problem<T>& p) { return p.controlled; }

// The source of long vectors, and a vector of n numbers from it.
struct Memory {};
template <class T> Values<T> take(Memory&, int64_t n) { return Values<T>(n); }

// A list that grows at its end, to at most `most` entries.
template <class T> class List {
  public:
    List(Memory&, int64_t) {}
    void clear() { entries_.clear(); }
    void add(T entry) { entries_.push_back(entry); }
    int64_t count() const { return int64_t(entries_.size()); }
    T operator[](int64_t n) const { return entries_[n]; }
    T last() const { return entries_.back(); }
    void drop() { entries_.pop_back(); }

  private:
    std::vector<T> entries_;
};

// Room for at most `most` states of P numbers each; memory is taken when a state is first asked for.
template <class T> class States {
  public:
    States(Memory&, int64_t, int64_t P) : P(P) {}
    T* operator[](int64_t n) {
        if (n >= int64_t(states_.size())) states_.resize(n + 1);
        if (states_[n].empty()) states_[n].resize(P);
        return states_[n].data();
    }

  private:
    int64_t P;
    std::vector<Values<T>> states_;
};

// run(i) for all i < n.
template <class F> INLINE void each(int64_t n, F run) {
    for (int64_t i = 0; i < n; ++i) run(i);
}
// out[i] = term(i) for all i < n, where term(i) reads no other entry of out.
template <class T, class F> INLINE void fill(int64_t n, T* out, F term) {
    for (int64_t i = 0; i < n; ++i) out[i] = term(i);
}
template <class T> void copy(int64_t n, const T* from, T* to) { std::memcpy(to, from, n * sizeof(T)); }

// out = from + h·Σ_j c_j v_j for j < count, with the vectors v_j stored one after another; without `from`, only the sum. out may
// be from.
template <class T>
void add_weighted(int64_t n, const T* from, T h, const double* c, int64_t count, const T* vectors, T* out) {
    if (!from) std::fill_n(out, n, T(0));
    else if (out != from) copy(n, from, out);
    for (int64_t j = 0; j < count; ++j, vectors += n)
        if (const T weight = h * T(c[j]); c[j] != 0) each(n, [=](int64_t i) { out[i] += weight * vectors[i]; });
}

// Σ term(i) in double, in a fixed order that vectorises.
template <class F> double total(int64_t n, F term) {
    constexpr int parts = 32;  // enough that additions don't wait for one another
    double part[parts] = {};
    int64_t i = 0;
    for (; i + parts <= n; i += parts)
        for (int q = 0; q < parts; ++q) part[q] += term(i + q);
    for (; i < n; ++i) part[i % parts] += term(i);
    for (int half = parts / 2; half; half /= 2)
        for (int q = 0; q < half; ++q) part[q] += part[q + half];
    return part[0];
}

// The largest term(i), or 0 if all are negative; NaN if any is NaN.
template <class T, class F> T largest(int64_t n, F term) {
    constexpr int parts = 32;
    T part[parts] = {};
    int64_t i = 0;
    for (; i + parts <= n; i += parts)
        for (int q = 0; q < parts; ++q) {
            const T one = term(i + q);
            part[q] = one > part[q] || one != one ? one : part[q];
        }
    for (; i < n; ++i) {
        const T one = term(i);
        part[i % parts] = one > part[i % parts] || one != one ? one : part[i % parts];
    }
    T most = 0;
    for (const T one : part) most = one > most || one != one ? one : most;
    return most;
}

// Writes a result; on a GPU, one thread of the block does.
template <class T> void put(T* to, T value) { *to = value; }

[[noreturn]] inline void fail(Failure failure) { throw failure; }

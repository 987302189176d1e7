// The states that are kept for the adjoint, as in amaml/flow/snapshots.py and amaml/adjoint/checkpointing.py.
#pragma once
#include "arithmetic.h"
#include "block.h"

// The states before every spacing-th segment of a trajectory. `thin` doubles the spacing when there are too many of them.
template <class T> class Kept {
  public:
    Kept(Memory& memory, int64_t most, int64_t P) : P_(P), states_(memory, most, P) {}
    void clear(int64_t spacing) { count_ = 0, spacing_ = spacing; }
    int64_t count() const { return count_; }
    int64_t spacing() const { return spacing_; }

    void offer(int64_t segment, const T* state) {
        if (segment % spacing_ == 0) copy(P_, state, states_[count_++]);
    }
    void thin() {
        for (int64_t n = 1; 2 * n < count_; ++n) copy(P_, static_cast<const T*>(states_[2 * n]), states_[n]);
        count_ = (count_ + 1) / 2, spacing_ *= 2;
    }
    // The last kept state and the segment that starts from it; `drop` removes it.
    int64_t last_segment() const { return (count_ - 1) * spacing_; }
    const T* last_state() { return states_[count_ - 1]; }
    void drop() { --count_; }

  private:
    int64_t P_, count_ = 0, spacing_ = 1;
    States<T> states_;
};

inline double choose(int64_t n, int64_t k) {
    double result = 1;
    for (int64_t i = 1; i <= k; ++i) result = result * double(n - k + i) / double(i);
    return round(result);
}

// The number of segments before the next kept state, with `slots` states in all, the first included (Griewank & Walther 2000,
// revolve).
inline int64_t split(int64_t length, int64_t slots) {
    int64_t repeats = 1;
    while (choose(slots + repeats, slots) < double(length)) ++repeats;
    const double right = double(length) - choose(slots - 1 + repeats, slots - 1);
    const double left = floor(choose(slots + repeats - 1, slots) / 2);
    return smaller<int64_t>(length - 1, larger<int64_t>(1, int64_t(larger(right, left))));
}

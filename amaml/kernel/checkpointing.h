// Where to keep a state (Griewank & Walther 2000, revolve), as in amaml/adjoint/checkpointing.py.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

inline double choose(int64_t n, int64_t k) {
    double result = 1;
    for (int64_t i = 1; i <= k; ++i) result = result * double(n - k + i) / double(i);
    return std::round(result);
}

// How far to carry before the next state is kept, with `slots` states counting the first.
inline int64_t split(int64_t length, int64_t slots) {
    int64_t repeats = 1;
    while (choose(slots + repeats, slots) < double(length)) ++repeats;
    const double right = double(length) - choose(slots - 1 + repeats, slots - 1);
    const double left = std::floor(choose(slots + repeats - 1, slots) / 2);
    return std::min<int64_t>(length - 1, std::max<int64_t>(1, int64_t(std::max(right, left))));
}

// Arithmetic on single numbers, for code that also runs on GPUs, where there is no standard library.
#pragma once

template <class T> constexpr T EPSILON = sizeof(T) == 4 ? T(1.1920928955078125e-7) : T(2.220446049250313e-16);
template <class T> constexpr T LEAST_NORMAL = sizeof(T) == 4 ? T(1.1754943508222875e-38) : T(2.2250738585072014e-308);
template <class T> constexpr T LARGEST = sizeof(T) == 4 ? T(3.4028234663852886e38) : T(1.7976931348623157e308);

// As std::max and std::min: the first argument where one of them is NaN.
template <class T> constexpr T larger(T a, T b) { return a < b ? b : a; }
template <class T> constexpr T smaller(T a, T b) { return b < a ? b : a; }
template <class T> constexpr T within(T x, T low, T high) { return x < low ? low : high < x ? high : x; }
template <class T> constexpr T absolute(T x) { return x < 0 ? -x : x; }
template <class T> constexpr bool finite(T x) { return x - x == 0; }
template <class T> constexpr bool is_nan(T x) { return x != x; }
template <class T> inline void exchange(T& a, T& b) {
    const T c = a;
    a = b, b = c;
}
